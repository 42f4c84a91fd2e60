"""Builds the evaluator of a data set by its evaluator_type."""

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluators

from .citypersons import MissRateEvaluator
from .citypersons_submission import CityPersonsSubmission
from .cityscapes import CityscapesVideoInstanceEvaluator, CityscapesVideoSemSegEvaluator
from .detection import VideoCOCOEvaluator
from .miss_rate import HEAVILY_OCCLUDED, SETTINGS
from .semantic import VideoSemSegEvaluator
from .submission import CityscapesInstanceSubmission, CityscapesSemSegSubmission

_CITYSCAPES = {
    "cityscapes_instance": CityscapesVideoInstanceEvaluator,
    "cityscapes_sem_seg": CityscapesVideoSemSegEvaluator,
    "cityscapes_video_instance": CityscapesVideoInstanceEvaluator,
    "cityscapes_video_sem_seg": CityscapesVideoSemSegEvaluator,
}

_SUBMISSIONS = {
    "cityscapes_video_instance": CityscapesInstanceSubmission,
    "cityscapes_video_sem_seg": CityscapesSemSegSubmission,
}

_TYPES = (*_CITYSCAPES, *(f"{name}_submission" for name in _SUBMISSIONS))
_TYPES += ("citypersons", "citypersons_submission", "pets09", "sem_seg", "coco")


def build_evaluator(cfg, dataset_name, output_folder):
    """
    Args:
        cfg (CfgNode): the job's config; SUBMISSION, MISS_RATES and SCORE_TO_LAST_PIXEL of
            TEST.BLOCKCOPY are read.
        dataset_name (str): a registered data set.
        output_folder (str): folder for files of the evaluator.

    Returns:
        DatasetEvaluator: for the data set's evaluator_type:

        * cityscapes_video_instance, cityscapes_instance: ``{"segm": {"AP", "AP50"}}``;
        * cityscapes_video_sem_seg, cityscapes_sem_seg: ``{"sem_seg": {"IoU", ...}}``;
        * citypersons: ``{"miss_rate": {"Reasonable", "Bare", "Partial", "Heavy"}}``, or the
          settings that TEST.BLOCKCOPY.MISS_RATES names;
        * pets09: ``{"bbox": {"AP", "AP50", ...}, "miss_rate": {"Reasonable"}}``;
        * sem_seg: ``{"sem_seg": {"mIoU", ...}}``;
        * coco: that of Detectron2's ``COCOEvaluator``, of the labelled frames that were run.

        Evaluators of cityscapes_video and citypersons also write files for the benchmark if the
        config asks for it. With ``_submission`` appended to the type, as on the test split, they
        only write files.

    Raises:
        NotImplementedError: another evaluator_type.
    """
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    scored = str(evaluator_type).removesuffix("_submission")
    evaluators = []
    if evaluator_type in _CITYSCAPES:
        evaluators.append(_CITYSCAPES[evaluator_type](dataset_name))
    if scored in _SUBMISSIONS and (scored != evaluator_type or cfg.TEST.BLOCKCOPY.SUBMISSION):
        evaluators.append(_SUBMISSIONS[scored](dataset_name, output_folder))
    if evaluators:
        return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)
    if evaluator_type == "sem_seg":
        return VideoSemSegEvaluator(dataset_name, output_folder)
    if scored == "citypersons":
        options = cfg.TEST.get("BLOCKCOPY", {})
        export = {"to_last_pixel": options.get("SCORE_TO_LAST_PIXEL", False)}
        submission = CityPersonsSubmission(dataset_name, output_folder, **export)
        if scored != evaluator_type:
            return submission
        settings = {setting.name: setting for setting in (*SETTINGS, HEAVILY_OCCLUDED)}
        names = options.get("MISS_RATES", [setting.name for setting in SETTINGS])
        measured = [settings[name] for name in names]
        miss_rate = MissRateEvaluator(dataset_name, settings=measured, **export)
        if not options.get("SUBMISSION", False):
            return miss_rate
        return DatasetEvaluators([miss_rate, submission])
    if evaluator_type == "pets09":
        # The visible part of a person is unknown, so all of them count as visible.
        reasonable = MissRateEvaluator(dataset_name, settings=SETTINGS[:1])
        boxes = VideoCOCOEvaluator(dataset_name, output_folder, tasks=("bbox",))
        return DatasetEvaluators([boxes, reasonable])
    if evaluator_type == "coco":
        return VideoCOCOEvaluator(dataset_name, output_folder)
    raise NotImplementedError(
        f"There is no evaluator for {dataset_name}, whose evaluator_type is {evaluator_type!r}; "
        f"expected one of {', '.join(_TYPES)}."
    )
