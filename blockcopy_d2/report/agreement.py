"""Agreement of the accelerated output with the dense one, per frame and over a video."""

import math

import numpy as np
import torch

from blockcopy_d2.evaluation import InstanceAgreement

__all__ = ["InstanceMeasure", "SemanticMeasure", "build_measure"]


class InstanceMeasure:
    """
    AP50 and AP of instances, with the dense ones as ground truth: see :class:`InstanceAgreement`.
    """

    names = ("AP50", "AP")
    description = (
        "average precision of the accelerated instances, with the dense ones as truth;"
        " AP50 counts masks or boxes that overlap by half, AP is the mean over overlaps .5 to .95"
    )

    def __init__(self, score_threshold=0.5):
        """
        Args:
            score_threshold (float): dense instances below it do not count as ground truth.
        """
        self._threshold = score_threshold
        self._whole = InstanceAgreement(score_threshold=score_threshold)
        self._found = False

    def add(self, dense, output):
        """
        Args:
            dense (dict): output of the dense model for a frame.
            output (dict): output of the accelerated one.
        """
        self._found |= self._has_truth(dense)
        self._whole.process([dense], [output])

    def frame_score(self, dense, output):
        """
        Returns:
            float: the first of ``names`` on this frame alone, in percent; NaN if the dense model
            finds nothing.
        """
        if not self._has_truth(dense):
            return math.nan
        single = InstanceAgreement(score_threshold=self._threshold)
        single.process([dense], [output])
        return single.evaluate()["agreement"][self.names[0]]

    def scores(self):
        """
        Returns:
            dict[str, float]: scores over all frames, in percent; NaN if the dense model finds
            nothing.
        """
        if not self._found:
            return dict.fromkeys(self.names, math.nan)
        agreement = self._whole.evaluate()["agreement"]
        return {name: agreement[name] for name in self.names}

    def _has_truth(self, dense):
        return bool((dense["instances"].scores >= self._threshold).any())


class SemanticMeasure:
    """Mean IoU and accuracy of the pixels' classes, with the dense ones as ground truth."""

    names = ("mIoU", "pixel accuracy")
    description = (
        "of the class of every pixel, with the dense ones as truth; mIoU is the mean over classes"
    )

    def __init__(self):
        self._confusion = 0

    def add(self, dense, output):
        """
        Args: as :meth:`InstanceMeasure.add`.
        """
        self._confusion = self._confusion + _confusion(dense, output)

    def frame_score(self, dense, output):
        """
        Returns:
            float: see :meth:`InstanceMeasure.frame_score`.
        """
        return _mean_iou(_confusion(dense, output))

    def scores(self):
        """
        Returns:
            dict[str, float]: scores over all frames, in percent; NaN where there are none.
        """
        if np.isscalar(self._confusion):
            return dict.fromkeys(self.names, math.nan)
        accuracy = 100 * float(np.trace(self._confusion) / self._confusion.sum())
        return dict(zip(self.names, (_mean_iou(self._confusion), accuracy)))


def build_measure(output, score_threshold):
    """
    Args:
        output (dict): output of the dense model, for any frame.
        score_threshold (float): see :class:`InstanceMeasure`.

    Returns:
        InstanceMeasure or SemanticMeasure: the measure for outputs of this kind.

    Raises:
        ValueError: the outputs have another kind.
    """
    if "instances" in output:
        return InstanceMeasure(score_threshold)
    if "sem_seg" in output:
        return SemanticMeasure()
    raise ValueError(
        f"The model gives {', '.join(sorted(output)) or 'nothing'} per frame; a report compares"
        " 'instances' or 'sem_seg'. Use a config of a detector or of a segmentation model."
    )


def _confusion(dense, output):
    """int (K, K): pixels by dense and accelerated class."""
    num_classes = dense["sem_seg"].shape[0]
    pairs = dense["sem_seg"].argmax(dim=0) * num_classes + output["sem_seg"].argmax(dim=0)
    counts = torch.bincount(pairs.flatten(), minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).cpu().numpy()


def _mean_iou(confusion):
    both = np.diag(confusion)
    either = confusion.sum(axis=0) + confusion.sum(axis=1) - both
    return 100 * float((both / np.maximum(either, 1))[either > 0].mean())
