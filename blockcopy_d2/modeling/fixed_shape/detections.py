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
from dataclasses import dataclass

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from blockcopy_d2.policy import DetectionMasks

from .box_inference import fill_slots
from .keypoints import StaticKeypoints
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
        keypoints (StaticKeypoints or None): keypoints of all slots, for detectors with such.
    """

    count: Tensor
    boxes: Tensor
    scores: Tensor
    classes: Tensor
    masks: Tensor | None
    policy_masks: Tensor
    output_size: tuple[int, int]
    pixels_per_block: int
    keypoints: StaticKeypoints | None = None

    @classmethod
    def of_boxes(cls, keep, boxes, scores, classes, *, sizes, pixels, num_slots):
        """
        Args:
            keep (Tensor): bool (N, T), the candidates that suppression left.
            boxes (Tensor): float32 (N, T, 4), in pixels of the network's input.
            scores, classes (Tensor): float32 (N, T), in descending order, and int64 (N, T).
            sizes (FrameSizes): sizes of the frames.
            pixels (PolicyPixels): those of these sizes.
            num_slots (int): D.

        Returns:
            StaticDetections: detections without masks.
        """
        _, boxes, scores, classes, count = fill_slots(
            *(keep, boxes, scores, classes, sizes.output_scale, sizes.output_size, num_slots)
        )
        return cls(
            count=count,
            boxes=boxes,
            scores=scores,
            classes=classes,
            masks=None,
            policy_masks=pixels.inside(boxes),
            output_size=sizes.output_size,
            pixels_per_block=sizes.pixels_per_block,
        )

    def to_instances(self):
        """
        Detectron2's results, in memory of their own. The host waits for the count here.

        Returns:
            list[Instances]: one for each image, see :meth:`instances_of`.
        """
        counts, slots = self.count.tolist(), self.copy_slots()
        instances = []
        for image, n in enumerate(counts):
            paste = None
            if self.masks is not None:
                paste = functools.partial(self._paste_one, image, n)
            of_image = [x[image] for x in slots]
            instances.append(self.instances_of(image, n, of_image, paste_later=paste))
            # Reading the fields computes those that are left until then.
            dict(instances[-1].get_fields())
        return instances

    def _paste_one(self, image, n):
        (masks,) = self.paste([image], [n])
        return masks

    def copy_slots(self):
        """
        Returns:
            tuple[Tensor, Tensor, Tensor]: boxes, scores and classes of all images, in memory of
            their own.
        """
        return self.boxes.clone(), self.scores.clone(), self.classes.clone()

    def instances_of(self, image, n, slots, *, paste_later=None):
        """
        Args:
            image (int):
            n (int): its count.
            slots (sequence[Tensor]): boxes, scores and classes of its slots, in whose memory the
                Instances lie: (D, 4), (D,) and (D,).
            paste_later (callable or None): a function without arguments that returns the masks,
                called when they are first read. None: there are no masks.

        Returns:
            Instances: n detections, with "pred_boxes", "scores", "pred_classes"; with
            ``paste_later`` "pred_masks", bool (n, H, W); and the fields of keypoints, if there are
            any, computed when they are read.
        """
        boxes, scores, classes = (x[:n] for x in slots)
        instances = Instances(
            self.output_size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes
        )
        later = {} if paste_later is None else {"pred_masks": paste_later}
        if self.keypoints is not None:
            later.update(self.keypoints.fields_of(image, n))
        if later:
            instances._fields = fields = LazyFields(instances.get_fields())
            for name, function in later.items():
                fields.later(name, function)
        return instances

    def paste(self, images, counts):
        """
        Paste the masks of some images, in one launch.

        Args:
            images (list[int]):
            counts (list[int]): their counts.

        Returns:
            list[Tensor]: bool (n, H, W) for each of them. Those of several images share memory.
        """
        most = max(counts)
        size = (len(images), most, *self.output_size)
        pasted = torch.zeros(size, dtype=torch.bool, device=self.masks.device)
        if most:
            parts = (self.masks, self.boxes, self.count)
            if len(images) == 1:
                parts = (x[images[0] : images[0] + 1] for x in parts)
            elif images != list(range(len(self.count))):
                parts = (torch.stack([x[image] for image in images]) for x in parts)
            paste_masks(*parts, pasted)
        return [one[:n] for one, n in zip(pasted, counts, strict=True)]

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
