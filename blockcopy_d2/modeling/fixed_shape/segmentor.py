"""
Semantic segmentation in fixed shapes, which it has in Detectron2, too.

Shape shorthand: N images, K classes, H x W pixels of the network's input.
"""

from detectron2.modeling import SemanticSegmentor
from torch.nn import functional as F

from .base import StaticHeads

__all__ = ["StaticSegmentor", "resize_logits"]


class StaticSegmentor(StaticHeads):
    """Computes the results of a SemanticSegmentor, whose whole head runs in blocks."""

    meta_architecture = SemanticSegmentor
    output_name = "sem_seg"

    def __init__(self, model):
        """
        Args:
            model (SemanticSegmentor):
        """
        self._backbone, self._head = self.sparse_modules(model)

    @staticmethod
    def sparse_modules(model):
        return model.backbone, model.sem_seg_head

    def network(self, images):
        logits, _ = self._head(self._backbone(images), None)
        return (logits,)

    def __call__(self, logits, sizes):
        """
        Args:
            logits (Tensor): (N, K, H, W).
            sizes (FrameSizes): sizes of the frames.

        Returns:
            Tensor: (N, K, height, width), see :func:`resize_logits`.
        """
        return resize_logits(logits, sizes)


def resize_logits(logits, sizes):
    """
    Detectron2's ``sem_seg_postprocess`` of a batch.

    Args:
        logits (Tensor): (N, K, H, W).
        sizes (FrameSizes): sizes of the frames.

    Returns:
        Tensor: (N, K, height, width), logits at the size of the output. If that is the size of the
        network's input, they are not copied.
    """
    if sizes.output_size == sizes.image_size == sizes.canvas_size:
        return logits
    height, width = sizes.image_size
    logits = logits[..., :height, :width]
    return F.interpolate(logits, sizes.output_size, mode="bilinear", align_corners=False)
