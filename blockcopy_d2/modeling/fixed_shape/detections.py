"""
Detections in a fixed number of slots.

Shape shorthand in this module:

    N: images of a batch
    D: slots of an image, TEST.DETECTIONS_PER_IMAGE
    M: side of a predicted mask
    h, w: policy resolution
    n: detections of an image
"""

import functools
from dataclasses import dataclass, replace

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from blockcopy_d2.policy import DetectionMasks

from .lazy_fields import LazyFields
from .paste import paste_masks

__all__ = ["StaticDetections"]


@dataclass
class StaticDetections:
    """
    The detections of a batch of images on the device, in descending order of their scores. Slots
    beyond the count hold a score of 0, class 0, an empty box and an empty policy mask.

    Attributes:
        count (Tensor): int32 (N,), detections of each image.
        boxes (Tensor): float32 (N, D, 4), x0 y0 x1 y1 in pixels of the output.
        scores (Tensor): float32 (N, D).
        classes (Tensor): int64 (N, D).
        masks (Tensor or None): float32 (N, D, M, M), probabilities within the boxes; undefined
            beyond the count. None for detectors without masks.
        policy_masks (Tensor): bool (N, D, h, w), the policy pixels with their centres in the mask,
            or in the box where there are no masks.
        output_size (tuple[int, int]): height, width.
        pixels_per_block (int): pixels per block of the policy masks, along an axis.
    """

    count: Tensor
    boxes: Tensor
    scores: Tensor
    classes: Tensor
    masks: Tensor | None
    policy_masks: Tensor
    output_size: tuple[int, int]
    pixels_per_block: int

    def clone(self):
        """
        Returns:
            StaticDetections: a copy in memory of its own, apart from the policy masks.
        """
        names = ("count", "boxes", "scores", "classes", "masks")
        tensors = {name: getattr(self, name) for name in names}
        return replace(self, **{name: x.clone() for name, x in tensors.items() if x is not None})

    def to_instances(self):
        """
        Detectron2's results, in memory of their own. The host waits for the count here.

        Returns:
            list[Instances]: one for each image, see :meth:`instances_of`.
        """
        return [self.instances_of(image, n) for image, n in enumerate(self.count.tolist())]

    def instances_of(self, image, n, *, run_later=None):
        """
        Args:
            image (int):
            n (int): its count.
            run_later (callable or None): if given, masks are pasted when they are first read. It
                wraps the function that pastes them, which takes no arguments. The memory of this
                object has to stay until then.

        Returns:
            Instances: n detections, with "pred_boxes", "scores", "pred_classes" and, for detectors
            with masks, "pred_masks", bool (n, H, W).
        """
        instances = Instances(self.output_size)
        instances.pred_boxes = Boxes(self.boxes[image, :n].clone())
        instances.scores = self.scores[image, :n].clone()
        instances.pred_classes = self.classes[image, :n].clone()
        if self.masks is not None:
            paste = functools.partial(self._pasted, image, n)
            if run_later is None:
                instances.pred_masks = paste()
            else:
                instances._fields = fields = LazyFields(instances.get_fields())
                fields.later("pred_masks", functools.partial(run_later, paste))
        return instances

    def _pasted(self, image, n):
        """Tensor: bool (n, H, W)."""
        this = slice(image, image + 1)
        size = (1, n, *self.output_size)
        pasted = torch.zeros(size, dtype=torch.bool, device=self.masks.device)
        if n:
            masks, boxes = self.masks[this, :n], self.boxes[this, :n]
            paste_masks(masks, boxes, self.count[this], pasted, blank=True)
        return pasted[0]

    def of_policy(self, image=0):
        """
        Returns the detections of an image for the policy and the information gain. Empty slots
        stay: they change nothing.

        Args:
            image (int or slice): one image, or some of them as a batch.

        Returns:
            DetectionMasks: D detections, in the memory of this object.
        """
        return DetectionMasks(
            self.policy_masks[image],
            self.scores[image],
            self.classes[image],
            None if self.masks is not None else self.boxes[image],
            self.pixels_per_block,
        )
