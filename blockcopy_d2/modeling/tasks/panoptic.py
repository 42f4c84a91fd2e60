"""Outputs with "instances" and "sem_seg". Shape shorthand: see :class:`Task`."""

import torch
from detectron2.config import configurable

from .base import TASK_REGISTRY, Task, takes_batches
from .instances import InstanceTask
from .semantic import SemanticTask

__all__ = ["PanopticTask"]


@TASK_REGISTRY.register()
class PanopticTask(Task):
    """Outputs with "instances" and "sem_seg": the views of both tasks, and the larger gain."""

    capturable = True
    moved_maps = "all"

    @configurable
    def __init__(self, num_things, num_stuff, pixels_per_block=32):
        """
        Args:
            num_things (int): classes of instances.
            num_stuff (int): classes of the semantic segmentation.
            pixels_per_block (int): P.
        """
        super().__init__(num_things + num_stuff, pixels_per_block)
        self._tasks = (
            InstanceTask(num_things, pixels_per_block),
            SemanticTask(num_stuff, pixels_per_block),
        )

    @classmethod
    def from_config(cls, cfg, base):
        return {
            "num_things": InstanceTask.count_classes(base),
            "num_stuff": SemanticTask.count_classes(base),
            "pixels_per_block": cfg.MODEL.BLOCKCOPY.POLICY.PIXELS_PER_BLOCK,
        }

    @takes_batches
    def observe(self, output, **geometry):
        """
        See :meth:`Task.observe`.

        Returns:
            tuple[DetectionMasks, Tensor]:
        """
        return tuple(task.observe(output, **geometry) for task in self._tasks)

    @takes_batches
    def move(self, seen, motion):
        return tuple(task.move(part, motion) for task, part in zip(self._tasks, seen))

    @takes_batches
    def paint(self, seen):
        """See :meth:`Task.paint`. Things come first."""
        return torch.cat([task.paint(part) for task, part in zip(self._tasks, seen)], dim=-3)

    @takes_batches
    def block_gain(self, current, previous, grid_shape):
        """
        See :meth:`Task.block_gain`. A divergence counts up to 1 nat, the gain of a certain
        instance.
        """
        instances, semantic = (
            task.block_gain(now, before, grid_shape)
            for task, now, before in zip(self._tasks, current, previous)
        )
        return torch.maximum(instances, semantic.clamp(max=1))
