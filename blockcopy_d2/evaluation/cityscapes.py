"""
Detectron2's Cityscapes evaluators for video: only labelled frames are scored, and only those
that were processed.

Detectron2 demands a prediction for every ground truth file of a split. Here clips may be left
out (``INPUT.CLIP.NUM_CLIPS``) or fail part-way, so the ground truth is that of the processed
frames, of all ranks. The options of cityscapesscripts are a module global; a copy of it is passed
instead, and nothing is written outside the evaluator's own temporary folder.

As in the official benchmark, instance AP ignores ground truth instances below 100 pixels, groups
("cargroup"), and predictions that lie mostly on either or on void pixels; it averages over the
classes that occur.
"""

import contextlib
import copy
import io
import os
import types

import numpy as np
from detectron2.evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from blockcopy_d2.data.files import AnnotationError, read_labels

from .gathering import gather, wait_for_all
from .labelled import labelled_pairs


class _LabelledFrames:
    """
    Mixin in front of a Detectron2 evaluator that writes a file per frame. Subclasses name the
    files and score the pairs.
    """

    prediction_suffix = ""
    gt_suffix = ""
    # Other files that the score reads.
    other_gt_suffixes = ()

    def reset(self):
        # The processes agree on a folder, with a limit; some may still run or score other data.
        wait_for_all()
        super().reset()
        self._file_names = []

    def process(self, inputs, outputs):
        """
        Args:
            inputs (list[dict]): frames with file_name in Cityscapes' naming. Those whose "labelled"
                is False are skipped.
            outputs (list[dict]): outputs of the model, for these frames.
        """
        for frame, output in labelled_pairs(inputs, outputs):
            super().process([frame], [output])
            self._file_names.append(frame["file_name"])

    def evaluate(self):
        """
        Returns:
            dict: {task: {metric: percent}} on the main process, NaN if no labelled frame was
            processed; None on the other ranks.
        """
        gathered = gather(self._file_names)
        if not comm.is_main_process():
            return None
        file_names = sorted(name for names in gathered for name in names)
        if not file_names:
            self._logger.warning("No labelled frame was processed: there is nothing to score.")
        gt_dir = PathManager.get_local_path(self._metadata.gt_dir)
        predictions, ground_truth = [], []
        try:
            for file_name in file_names:
                city = os.path.basename(os.path.dirname(file_name))
                frame = os.path.splitext(os.path.basename(file_name))[0]
                predictions.append(os.path.join(self._temp_dir, frame + self.prediction_suffix))
                stem = os.path.join(gt_dir, city, frame.removesuffix("_leftImg8bit"))
                ground_truth.append(stem + self.gt_suffix)
                for suffix in (self.gt_suffix, *self.other_gt_suffixes):
                    _check_labels(stem + suffix)
            return self._score_quietly(predictions, ground_truth)
        finally:
            self._working_dir.cleanup()

    def _score_quietly(self, predictions, ground_truth):
        """Scores without output, since cityscapesscripts prints errors and ends the program."""
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            try:
                return self._score(predictions, ground_truth)
            except SystemExit as error:
                raise RuntimeError(
                    f"cityscapesscripts gave up: {printed.getvalue().strip()}"
                ) from error


class CityscapesVideoInstanceEvaluator(_LabelledFrames, CityscapesInstanceEvaluator):
    """Instance segmentation: ``{"segm": {"AP", "AP50"}}`` in percent."""

    prediction_suffix = "_pred.txt"
    gt_suffix = "_gtFine_instanceIds.png"

    def _score(self, predictions, ground_truth):
        import cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling as api

        if not predictions:
            return {"segm": {"AP": float("nan"), "AP50": float("nan")}}
        _keep_in1d(api)
        args = copy.copy(api.args)
        args.predictionPath = os.path.abspath(self._temp_dir)
        args.quiet = True
        api.setInstanceLabels(args)
        instances = api.instances2dict(ground_truth)
        matches = api.matchGtWithPreds(predictions, ground_truth, instances, args)
        averages = api.computeAverages(api.evaluateMatches(matches, args), args)
        per_class = {name: 100 * value["ap"] for name, value in averages["classes"].items()}
        self._logger.info("Mask AP of each class:\n%s", create_small_table(per_class))
        return {
            "segm": {
                "AP": 100 * float(averages["allAp"]),
                "AP50": 100 * float(averages["allAp50%"]),
            }
        }


class CityscapesVideoSemSegEvaluator(_LabelledFrames, CityscapesSemSegEvaluator):
    """Semantic segmentation: ``{"sem_seg": {"IoU", "iIoU", "IoU_sup", "iIoU_sup"}}`` in percent."""

    prediction_suffix = "_pred.png"
    gt_suffix = "_gtFine_labelIds.png"
    other_gt_suffixes = ("_gtFine_instanceIds.png",)

    _METRICS = {
        "IoU": "averageScoreClasses",
        "iIoU": "averageScoreInstClasses",
        "IoU_sup": "averageScoreCategories",
        "iIoU_sup": "averageScoreInstCategories",
    }

    def _score(self, predictions, ground_truth):
        import cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling as api

        if not predictions:
            return {"sem_seg": dict.fromkeys(self._METRICS, float("nan"))}
        _keep_in1d(api)
        args = copy.copy(api.args)
        args.JSONOutput = False
        args.quiet = True
        results = api.evaluateImgLists(predictions, ground_truth, args)
        return {"sem_seg": {name: 100 * float(results[key]) for name, key in self._METRICS.items()}}


def _check_labels(path):
    from cityscapesscripts.helpers.labels import id2label

    ids = np.unique(read_labels(path))
    unknown = [i for i in ids if (i // 1000 if i >= 1000 else i) not in id2label]
    if unknown:
        raise AnnotationError(
            f"The labels {path} have the id {unknown[0]}, which is none of Cityscapes'."
        )


def _keep_in1d(api):
    """Newer versions of numpy lack a function that a module of cityscapesscripts calls."""
    if not hasattr(api.np, "in1d"):
        api.np = types.SimpleNamespace(**vars(np), in1d=np.isin)
