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
from detectron2.structures import Instances, RotatedBoxes
from torch import nn
from torch.nn import functional as F

from blockcopy_d2.policy import (
    DetectionMasks,
    block_information_gain,
    instance_block_gain,
    move_detections,
    paint_output,
    rasterize_instances,
    resize_to_policy,
    semantic_information_gain,
)

from .fixed_shape import StaticDetections

__all__ = [
    "InstanceTask",
    "PanopticTask",
    "ProposalTask",
    "SemanticTask",
    "build_task",
    "infer_task",
    "proposal_instances",
]


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
            output (dict): one frame's, in Detectron2's format; its "instances" may also be
                StaticDetections of one image.
            image_size (tuple[int, int]): of the network's input without its padding.
            canvas_size (tuple[int, int]): of the network's input.
            grid_shape (tuple[int, int]): rows and columns of blocks.

        Returns:
            DetectionMasks: n detections at policy resolution.
        """
        instances = output["instances"]
        if isinstance(instances, StaticDetections):
            return instances.of_policy()
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
        """
        Args:
            seen (DetectionMasks): of a frame.
            motion (PolicyMotion): from it to the next.

        Returns:
            DetectionMasks: where its detections are in the next frame.
        """
        return move_detections(seen, motion)

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


class ProposalTask(InstanceTask):
    """Outputs with "proposals": boxes of one class, scored by their objectness."""

    def __init__(self, pixels_per_block=32):
        """
        Args:
            pixels_per_block (int): P.
        """
        super().__init__(1, pixels_per_block)

    def observe(self, output, **geometry):
        instances = proposal_instances(output["proposals"])
        instances.pred_classes = torch.zeros_like(instances.scores, dtype=torch.int64)
        return super().observe({"instances": instances}, **geometry)


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

    def move(self, seen, motion):
        """As :meth:`InstanceTask.move`, of probabilities."""
        return motion.move_maps(seen[None])[0]

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


class PanopticTask:
    """Outputs with "instances" and "sem_seg": what either task sees, and the larger gain."""

    def __init__(self, num_things, num_stuff, pixels_per_block=32):
        """
        Args:
            num_things (int): classes of instances.
            num_stuff (int): classes of the semantic segmentation.
            pixels_per_block (int): P.
        """
        self.instances = InstanceTask(num_things, pixels_per_block)
        self.semantic = SemanticTask(num_stuff, pixels_per_block)
        self.num_classes = num_things + num_stuff
        self.pixels_per_block = pixels_per_block

    def observe(self, output, **geometry):
        """
        Args: as :meth:`InstanceTask.observe`.

        Returns:
            tuple[DetectionMasks, Tensor]:
        """
        return (
            self.instances.observe(output, **geometry),
            self.semantic.observe(output, **geometry),
        )

    def move(self, seen, motion):
        """As :meth:`InstanceTask.move`, of both."""
        return tuple(
            task.move(part, motion) for task, part in zip((self.instances, self.semantic), seen)
        )

    def paint(self, seen):
        """
        Returns:
            Tensor: float (K, h, w) in [0, 1], things first.
        """
        instances, semantic = seen
        return torch.cat([self.instances.paint(instances), self.semantic.paint(semantic)])

    def block_gain(self, current, previous, grid_shape):
        """
        Returns:
            Tensor: float (GH, GW), eq. 1. A divergence counts up to 1 nat, which is what a certain
            instance gains.
        """
        gains = [
            task.block_gain(now, before, grid_shape)
            for task, now, before in zip((self.instances, self.semantic), current, previous)
        ]
        return torch.maximum(gains[0], gains[1].clamp(max=1))


def build_task(cfg):
    """
    Args:
        cfg (CfgNode): names the task network, not the model around it.

    Returns:
        InstanceTask, ProposalTask, SemanticTask or PanopticTask:
    """
    name = cfg.MODEL.META_ARCHITECTURE
    pixels_per_block = cfg.MODEL.BLOCKCOPY.POLICY.PIXELS_PER_BLOCK
    if name == "SemanticSegmentor":
        return SemanticTask(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, pixels_per_block)
    if name == "PanopticFPN":
        return PanopticTask(
            cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, pixels_per_block
        )
    if name == "ProposalNetwork":
        return ProposalTask(pixels_per_block)
    if name == "CSP":
        return InstanceTask(1, pixels_per_block)
    if name == "RetinaNet":
        return InstanceTask(cfg.MODEL.RETINANET.NUM_CLASSES, pixels_per_block)
    return InstanceTask(cfg.MODEL.ROI_HEADS.NUM_CLASSES, pixels_per_block)


def infer_task(base, pixels_per_block=32):
    """
    Args:
        base (nn.Module): a meta-architecture of Detectron2, or one that keeps its parts under the
            same names: "roi_heads", "sem_seg_head", "head" for a one-stage detector, or a
            "proposal_generator" alone.
        pixels_per_block (int): P.

    Returns:
        InstanceTask, ProposalTask, SemanticTask or PanopticTask: that understands its outputs.

    Raises:
        ValueError: the meta-architecture has none of these parts.
    """
    roi_heads = getattr(base, "roi_heads", None)
    sem_seg_head = getattr(base, "sem_seg_head", None)
    if roi_heads is not None and sem_seg_head is not None:
        num_stuff = _num_channels(sem_seg_head)
        return PanopticTask(roi_heads.num_classes, num_stuff, pixels_per_block)
    if roi_heads is not None:
        return InstanceTask(roi_heads.num_classes, pixels_per_block)
    if sem_seg_head is not None:
        return SemanticTask(_num_channels(sem_seg_head), pixels_per_block)
    if hasattr(base, "head"):
        return InstanceTask(getattr(base, "num_classes", 1), pixels_per_block)
    if hasattr(base, "proposal_generator"):
        return ProposalTask(pixels_per_block)
    raise ValueError(
        f"{type(base).__name__} has no roi_heads, sem_seg_head, head or proposal_generator: it is"
        " not known what its outputs look like. Give BlockCopyVideoModel a task for them."
    )


def proposal_instances(proposals):
    """
    Args:
        proposals (Instances): n of a ProposalNetwork, with "proposal_boxes" and
            "objectness_logits".

    Returns:
        Instances: with "pred_boxes" and "scores", in [0, 1].
    """
    return Instances(
        proposals.image_size,
        pred_boxes=proposals.proposal_boxes,
        scores=proposals.objectness_logits.float().sigmoid(),
    )


def _num_channels(head):
    """Of its last convolution, which gives the logits."""
    convolutions = [m for m in head.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d))]
    return convolutions[-1].out_channels
