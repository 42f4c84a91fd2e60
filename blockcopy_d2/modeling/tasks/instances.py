"""Outputs with "instances". Shape shorthand: see :class:`Task`."""

from detectron2.structures import RotatedBoxes

from blockcopy_d2.policy import (
    DetectionMasks,
    instance_block_gain,
    move_detections,
    paint_output,
    rasterize_instances,
)

from .base import TASK_REGISTRY, Task, takes_batches

__all__ = ["InstanceTask"]


@TASK_REGISTRY.register()
class InstanceTask(Task):
    """Outputs with "instances": masks where there are any, boxes otherwise (Algorithm 1)."""

    capturable = True

    @staticmethod
    def count_classes(base):
        for part in (getattr(base, "roi_heads", None), base):
            if hasattr(part, "num_classes"):
                return part.num_classes
        raise ValueError(
            f"{type(base).__name__} does not say how many classes it detects: expected an"
            " attribute num_classes of it or of its roi_heads. Set it, or give"
            " BlockCopyVideoModel a task."
        )

    @takes_batches
    def observe(self, output, *, image_size, canvas_size, grid_shape):
        """
        See :meth:`Task.observe`.

        Returns:
            DetectionMasks: n detections at policy resolution.
        """
        instances = self.part(output, "instances")
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

    @takes_batches
    def move(self, seen, motion):
        return move_detections(seen, motion)

    @takes_batches
    def paint(self, seen):
        """See :meth:`Task.paint`. A pixel of a class has the score of the best detection there."""
        return paint_output(seen.masks, seen.scores, seen.classes, self.num_classes)

    @takes_batches
    def block_gain(self, current, previous, grid_shape):
        return instance_block_gain(current, previous, grid_shape)
