"""From the evaluator_type of a data set to its evaluator."""

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators

from .citypersons import MissRateEvaluator
from .cityscapes import CityscapesVideoInstanceEvaluator, CityscapesVideoSemSegEvaluator
from .detection import VideoCOCOEvaluator
from .miss_rate import SETTINGS

_CITYSCAPES = {
    "cityscapes_instance": CityscapesVideoInstanceEvaluator,
    "cityscapes_sem_seg": CityscapesVideoSemSegEvaluator,
    "cityscapes_video_instance": CityscapesVideoInstanceEvaluator,
    "cityscapes_video_sem_seg": CityscapesVideoSemSegEvaluator,
}


def build_evaluator(cfg, dataset_name, output_folder):
    """
    Args:
        cfg (CfgNode): the job's config; no evaluator here depends on it.
        dataset_name (str): a registered data set.
        output_folder (str): for files an evaluator leaves.

    Returns:
        DatasetEvaluator: for the data set's evaluator_type:

        * cityscapes_video_instance, cityscapes_instance: ``{"segm": {"AP", "AP50"}}``;
        * cityscapes_video_sem_seg, cityscapes_sem_seg: ``{"sem_seg": {"IoU", ...}}``;
        * citypersons: ``{"miss_rate": {"Reasonable", "Bare", "Partial", "Heavy"}}``;
        * pets09: ``{"bbox": {"AP", "AP50", ...}, "miss_rate": {"Reasonable"}}``;
        * coco: Detectron2's ``COCOEvaluator``.

    Raises:
        NotImplementedError: another evaluator_type.
    """
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if evaluator_type in _CITYSCAPES:
        return _CITYSCAPES[evaluator_type](dataset_name)
    if evaluator_type == "citypersons":
        return MissRateEvaluator(dataset_name)
    if evaluator_type == "pets09":
        # Nothing tells how much of a person is visible, so all of them count as visible.
        reasonable = MissRateEvaluator(dataset_name, settings=SETTINGS[:1])
        return DatasetEvaluators([VideoCOCOEvaluator(dataset_name, output_folder), reasonable])
    if evaluator_type == "coco":
        return COCOEvaluator(dataset_name, output_dir=output_folder)
    raise NotImplementedError(
        f"There is no evaluator for {dataset_name}, whose evaluator_type is {evaluator_type!r}; "
        f"expected one of {', '.join((*_CITYSCAPES, 'citypersons', 'pets09', 'coco'))}."
    )
