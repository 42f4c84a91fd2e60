"""
PanopticFPN in fixed shapes: the heads of Mask R-CNN and of a segmentation model on one backbone.

Shape shorthand: N images, K classes, H x W pixels of the network's input.
"""

import functools

import torch
from detectron2.modeling import PanopticFPN

from .lazy_fields import LazyFields
from .panoptic_merge import merge_panoptic
from .rcnn import StaticRCNN
from .segmentor import resize_logits

__all__ = ["StaticPanopticFPN"]


class StaticPanopticFPN(StaticRCNN):
    """
    Computes the results of a PanopticFPN. Instances and segmentation are merged when "panoptic_seg"
    is read, since that takes as many steps as there are instances.
    """

    meta_architecture = PanopticFPN

    def __init__(self, model, **options):
        """
        Args:
            model (PanopticFPN): one that :meth:`supports` is true for.
            options: see :class:`StaticRCNN`.
        """
        super().__init__(model, **options)
        self._model = model

    @classmethod
    def supports(cls, model):
        return super().supports(model) and model.roi_heads.mask_on

    @staticmethod
    def sparse_modules(model):
        return *StaticRCNN.sparse_modules(model), model.sem_seg_head

    def network(self, images):
        features, *others = super().network(images)
        sem_seg, _ = self._model.sem_seg_head(features, None)
        return sem_seg, features, *others

    @torch.no_grad()
    def __call__(self, sem_seg, *others):
        """
        Args:
            sem_seg (Tensor): logits (N, K, H, W).
            others: arguments of :class:`StaticRCNN`, the FrameSizes last.

        Returns:
            tuple[Tensor, StaticDetections]: logits (N, K, height, width) at the size of the output,
            and detections.
        """
        return self.finish(*self.begin(sem_seg, *others))

    @torch.no_grad()
    def begin(self, sem_seg, *others):
        """See :meth:`StaticRCNN.begin`."""
        count, *begun = super().begin(*others)
        return count, sem_seg, others[-1], *begun

    @torch.no_grad()
    def finish(self, count, sem_seg, sizes, *begun):
        """See :meth:`StaticHeads.finish`."""
        return resize_logits(sem_seg, sizes), super().finish(count, *begun)

    def parts(self, result):
        sem_seg, detections = result
        return {"sem_seg": sem_seg, "instances": detections}

    def complete(self, output):
        parts = output["instances"], output["sem_seg"]
        output = LazyFields(output)
        output.later("panoptic_seg", functools.partial(self._combine, *parts))
        return output

    def _combine(self, instances, sem_seg):
        model = self._model
        return merge_panoptic(
            instances.pred_masks,
            instances.scores,
            instances.pred_classes,
            sem_seg.argmax(dim=0),
            len(sem_seg),
            overlap_threshold=model.combine_overlap_thresh,
            least_area=model.combine_stuff_area_thresh,
            least_score=model.combine_instances_score_thresh,
        )
