"""Outputs with "sem_seg". Shape shorthand: see :class:`Task`."""

import torch
from torch import nn
from torch.nn import functional as F

from blockcopy_d2.policy import (
    block_information_gain,
    resize_to_policy,
    semantic_information_gain,
)

from .base import TASK_REGISTRY, Task, takes_batches

__all__ = ["ReleasedSemanticTask", "SemanticTask"]


@TASK_REGISTRY.register()
class SemanticTask(Task):
    """Outputs with "sem_seg": the class probabilities of every pixel, compared by KL divergence."""

    capturable = True
    # Heads have large windows: executed blocks read features around them.
    moved_maps = "all"

    @staticmethod
    def count_classes(base):
        """
        See :meth:`Task.count_classes`: channels of the last convolution, which computes logits.
        """
        head = getattr(base, "sem_seg_head", None) or nn.Identity()
        convolutions = [m for m in head.modules() if isinstance(m, nn.Conv1d | nn.Conv2d)]
        if not convolutions:
            raise ValueError(
                f"{type(base).__name__} does not say how many classes its segmentation has:"
                " expected a sem_seg_head with convolutions. Change MODEL.BLOCKCOPY.TASK, or give"
                " BlockCopyVideoModel a task."
            )
        return convolutions[-1].out_channels

    @takes_batches
    def observe(self, output, *, image_size, canvas_size, grid_shape):
        """
        See :meth:`Task.observe`.

        Returns:
            Tensor: float (K, h, w), probabilities of the mean logits of a policy pixel; zero in
            the padding.
        """
        sem_seg = self.part(output, "sem_seg")
        logits = sem_seg.view(-1, *sem_seg.shape[-3:])
        inside = logits.new_ones(1, 1, *image_size)
        if tuple(logits.shape[-2:]) != tuple(image_size):
            logits = F.interpolate(logits, size=image_size, mode="bilinear", align_corners=False)
        if tuple(canvas_size) != tuple(image_size):
            padding = (0, canvas_size[1] - image_size[1], 0, canvas_size[0] - image_size[0])
            logits, inside = F.pad(logits, padding), F.pad(inside, padding)
        logits, inside = (
            resize_to_policy(x, grid_shape, self.pixels_per_block).float() for x in (logits, inside)
        )
        # Softmax comes last: it would take most of the time at the resolution of the output.
        seen = self._represent(logits / inside.clamp_min(torch.finfo(torch.float32).eps))
        seen = seen.masked_fill(inside == 0, 0)
        return seen.view(*sem_seg.shape[:-2], *seen.shape[-2:])

    @staticmethod
    def _represent(logits):
        return logits.softmax(dim=1)

    @takes_batches
    def move(self, seen, motion):
        return motion.move_maps(seen.view(-1, *seen.shape[-3:])).view_as(seen)

    @takes_batches
    def paint(self, seen):
        return seen

    @takes_batches
    def block_gain(self, current, previous, grid_shape):
        return block_information_gain(semantic_information_gain(current, previous), grid_shape)


@TASK_REGISTRY.register()
class ReleasedSemanticTask(SemanticTask):
    """
    Outputs with "sem_seg", treated as in the authors' public code. The policy gets the logits. The
    gain of a pixel is the divergence of the previous output from the current one, the opposite
    direction, with the mean over classes in place of the sum.
    """

    @staticmethod
    def _represent(logits):
        return logits

    @takes_batches
    def block_gain(self, current, previous, grid_shape):
        current, previous = current.log_softmax(dim=-3), previous.log_softmax(dim=-3)
        gain = (previous.exp() * (previous - current)).mean(dim=-3)
        return block_information_gain(gain, grid_shape)
