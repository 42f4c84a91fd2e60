"""Semantic segmentation on any data set, for video."""

import numpy as np
from detectron2.evaluation import SemSegEvaluator
from detectron2.utils.file_io import PathManager
from PIL import Image

__all__ = ["VideoSemSegEvaluator"]


class VideoSemSegEvaluator(SemSegEvaluator):
    """
    Detectron2's evaluator for frames of which not all may be labelled: the others are passed over.
    ``{"sem_seg": {"mIoU", "fwIoU", "mACC", "pACC", "IoU-<class>", ...}}`` in percent.
    """

    def __init__(self, dataset_name, output_dir=None):
        """
        Args:
            dataset_name (str): its dicts have sem_seg_file_name, its metadata stuff_classes and
                ignore_label.
            output_dir (str): for the predictions; None: they are not kept.
        """
        super().__init__(dataset_name, output_dir=output_dir, sem_seg_loading_fn=_read_labels)

    def process(self, inputs, outputs):
        """
        Args:
            inputs (list[dict]): frames. Those whose "labelled" is False are passed over.
            outputs (list[dict]): of the model, for these frames.
        """
        pairs = [(i, o) for i, o in zip(inputs, outputs, strict=True) if i.get("labelled", True)]
        super().process([frame for frame, _ in pairs], [output for _, output in pairs])


def _read_labels(file_name, dtype):
    # Detectron2's own reader asks for no copy, which numpy 2 refuses.
    with PathManager.open(file_name, "rb") as f:
        return np.asarray(Image.open(f)).astype(dtype)
