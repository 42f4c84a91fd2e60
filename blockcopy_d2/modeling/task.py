"""
What the policy sees of an output, and how two outputs differ: one class per kind of task.

Shape shorthand in this module:

    GH, GW: rows and columns of the block grid
    P: side of a block in policy pixels
    h, w: policy resolution, P GH x P GW
    K: classes
    n: detections of a frame
"""

import torch
from torch.nn import functional as F

from blockcopy_d2.policy import (
    DetectionMasks,
    block_information_gain,
    instance_block_gain,
    paint_output,
    rasterize_instances,
    resize_to_policy,
    semantic_information_gain,
)

__all__ = ["InstanceTask", "SemanticTask", "build_task"]


class InstanceTask:
    """Outputs with "instances": masks where there are any, boxes otherwise (Algorithm 1)."""

    def __init__(self, num_classes, pixels_per_block=32):
        """
        Args:
            num_classes (int): K.
            pixels_per_block (int): P.
        """
        self.num_classes = num_classes
        self.pixels_per_block = pixels_per_block

    def observe(self, output, *, image_size, canvas_size, grid_shape):
        """
        Args:
            output (dict): one frame's, in Detectron2's format.
            image_size (tuple[int, int]): of the network's input without its padding.
            canvas_size (tuple[int, int]): of the network's input.
            grid_shape (tuple[int, int]): rows and columns of blocks.

        Returns:
            DetectionMasks: n detections at policy resolution.
        """
        instances = output["instances"]
        masks = rasterize_instances(
            instances,
            image_size=image_size,
            canvas_size=canvas_size,
            grid_shape=grid_shape,
            pixels_per_block=self.pixels_per_block,
        )
        boxes = None if instances.has("pred_masks") else instances.pred_boxes.tensor
        return DetectionMasks(
            masks, instances.scores, instances.pred_classes, boxes, self.pixels_per_block
        )

    def paint(self, seen):
        """
        Returns:
            Tensor: float (K, h, w) in [0, 1], per class the score of the best detection there.
        """
        return paint_output(seen.masks, seen.scores, seen.classes, self.num_classes)

    def block_gain(self, current, previous, grid_shape):
        """
        Returns:
            Tensor: float (GH, GW), eq. 1.
        """
        return instance_block_gain(current, previous, grid_shape)


class SemanticTask:
    """Outputs with "sem_seg": the class probabilities of every pixel, compared by KL divergence."""

    def __init__(self, num_classes, pixels_per_block=32):
        """
        Args:
            num_classes (int): K.
            pixels_per_block (int): P.
        """
        self.num_classes = num_classes
        self.pixels_per_block = pixels_per_block

    def observe(self, output, *, image_size, canvas_size, grid_shape):
        """
        Args: as :meth:`InstanceTask.observe`.

        Returns:
            Tensor: float (K, h, w), probabilities of the mean logits of a policy pixel; zero in
            the padding.
        """
        logits = output["sem_seg"][None]
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
        probabilities = (logits / inside.clamp_min(torch.finfo(torch.float32).eps)).softmax(dim=1)
        return probabilities.masked_fill(inside == 0, 0)[0]

    def paint(self, seen):
        """
        Returns:
            Tensor: float (K, h, w) in [0, 1].
        """
        return seen

    def block_gain(self, current, previous, grid_shape):
        """
        Returns:
            Tensor: float (GH, GW), eq. 1.
        """
        return block_information_gain(semantic_information_gain(current, previous), grid_shape)


def build_task(cfg):
    """
    Args:
        cfg (CfgNode): names the task network, not the model around it.

    Returns:
        InstanceTask or SemanticTask:
    """
    name = cfg.MODEL.META_ARCHITECTURE
    pixels_per_block = cfg.MODEL.BLOCKCOPY.POLICY.PIXELS_PER_BLOCK
    if name == "SemanticSegmentor":
        return SemanticTask(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, pixels_per_block)
    if name == "CSP":
        return InstanceTask(1, pixels_per_block)
    if name == "RetinaNet":
        return InstanceTask(cfg.MODEL.RETINANET.NUM_CLASSES, pixels_per_block)
    return InstanceTask(cfg.MODEL.ROI_HEADS.NUM_CLASSES, pixels_per_block)
