"""Outputs with "instances". Shape shorthand: see :class:`Task`."""

from detectron2.config import configurable
from detectron2.structures import RotatedBoxes

from blockcopy_d2.policy import (
    DetectionMasks,
    instance_block_gain,
    move_detections,
    paint_output,
    rasterize_instances,
)

from .base import TASK_REGISTRY, Task

__all__ = ["InstanceTask"]


@TASK_REGISTRY.register()
class InstanceTask(Task):
    """Outputs with "instances": masks where there are any, boxes otherwise (Algorithm 1)."""

    capturable = True

    @configurable
    def __init__(self, num_classes, pixels_per_block=32):
        """
        Args:
            num_classes (int): K.
            pixels_per_block (int): P.
        """
        self.num_classes = num_classes
        self.pixels_per_block = pixels_per_block

    @classmethod
    def from_config(cls, cfg, base):
        return {"num_classes": num_instance_classes(base), **super().from_config(cfg, base)}

    def observe(self, output, *, image_size, canvas_size, grid_shape):
        """
        As :meth:`Task.observe`.

        Returns:
            DetectionMasks: n detections at policy resolution.
        """
        instances = output["instances"]
        if isinstance(instances, DetectionMasks):
            return instances
        masks = rasterize_instances(
            instances,
            image_size=image_size,
            canvas_size=canvas_size,
            grid_shape=grid_shape,
            pixels_per_block=self.pixels_per_block,
        )
        # Rotated boxes are compared as masks, too.
        as_masks = instances.has("pred_masks") or isinstance(instances.pred_boxes, RotatedBoxes)
        boxes = None if as_masks else instances.pred_boxes.tensor
        height, width = instances.image_size
        return DetectionMasks(
            masks,
            instances.scores.float(),
            instances.pred_classes,
            boxes,
            self.pixels_per_block,
            box_scale=(width / image_size[1], height / image_size[0]),
        )

    def move(self, seen, motion):
        return move_detections(seen, motion)

    def paint(self, seen):
        """As :meth:`Task.paint`, per class the score of the best detection there."""
        return paint_output(seen.masks, seen.scores, seen.classes, self.num_classes)

    def block_gain(self, current, previous, grid_shape):
        return instance_block_gain(current, previous, grid_shape)


def num_instance_classes(base):
    """
    Args:
        base (nn.Module): a meta-architecture of Detectron2, or one that tells the number of classes
            alike: in its "roi_heads", or itself.

    Returns:
        int: classes of its detections.

    Raises:
        ValueError: it tells of none.
    """
    for part in (getattr(base, "roi_heads", None), base):
        if hasattr(part, "num_classes"):
            return part.num_classes
    raise ValueError(
        f"{type(base).__name__} does not tell how many classes it detects: expected an attribute"
        " num_classes of it or of its roi_heads. Set it, or give BlockCopyVideoModel a task."
    )
