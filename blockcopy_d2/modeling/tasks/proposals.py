"""Outputs with "proposals". Shape shorthand: see :class:`Task`."""

import torch
from detectron2.config import configurable
from detectron2.structures import Instances

from blockcopy_d2.policy import DetectionMasks

from .base import TASK_REGISTRY, takes_batches
from .instances import InstanceTask

__all__ = ["ProposalTask", "proposal_instances"]


@TASK_REGISTRY.register()
class ProposalTask(InstanceTask):
    """Outputs with "proposals": boxes of one class, scored by their objectness."""

    @configurable
    def __init__(self, pixels_per_block=32):
        """
        Args:
            pixels_per_block (int): P.
        """
        super().__init__(1, pixels_per_block)

    @classmethod
    def from_config(cls, cfg, base):
        return {"pixels_per_block": cfg.MODEL.BLOCKCOPY.POLICY.PIXELS_PER_BLOCK}

    @takes_batches
    def observe(self, output, **geometry):
        instances = self.part(output, "proposals")
        if not isinstance(instances, DetectionMasks):
            instances = proposal_instances(instances)
            instances.pred_classes = torch.zeros_like(instances.scores, dtype=torch.int64)
        return super().observe({"instances": instances}, **geometry)


def proposal_instances(proposals):
    """
    Args:
        proposals (Instances): n proposals of a ProposalNetwork, with "proposal_boxes" and
            "objectness_logits".

    Returns:
        Instances: with "pred_boxes" and "scores", in [0, 1].
    """
    return Instances(
        proposals.image_size,
        pred_boxes=proposals.proposal_boxes,
        scores=proposals.objectness_logits.float().sigmoid(),
    )
