"""
A region proposal network alone, in fixed shapes.

Shape shorthand: N images, R slots for proposals of an image.
"""

import dataclasses

import torch
from detectron2.modeling import ProposalNetwork
from detectron2.structures import Instances

from .base import StaticHeads
from .detections import StaticDetections
from .geometry import PixelTables
from .rpn import StaticRPN

__all__ = ["StaticProposalNetwork", "StaticProposals"]


class StaticProposals(StaticDetections):
    """Proposals of a batch of images, of class 0. Their scores are logits of the objectness."""

    def instances_of(self, image, n, slots, *, paste_later=None):
        """
        See :meth:`StaticDetections.instances_of`.

        Returns:
            Instances: n proposals, with "proposal_boxes" and "objectness_logits".
        """
        found = super().instances_of(image, n, slots, paste_later=paste_later)
        return Instances(
            found.image_size, proposal_boxes=found.pred_boxes, objectness_logits=found.scores
        )

    def of_policy(self, image=0):
        """See :meth:`StaticDetections.of_policy`. Scores are probabilities, 0 of empty slots."""
        seen, count = super().of_policy(image), self.count[image]
        slots = torch.arange(seen.scores.shape[-1], device=count.device)
        scores = torch.where(slots < count[..., None], seen.scores.sigmoid(), 0.0)
        return dataclasses.replace(seen, scores=scores)


class StaticProposalNetwork(StaticHeads):
    """
    Computes the results of a ProposalNetwork. The first call with a FrameSizes puts tables on the
    device: make it before a CUDA graph is captured.
    """

    meta_architecture = ProposalNetwork
    output_name = "proposals"

    def __init__(self, model):
        """
        Args:
            model (ProposalNetwork): one that :meth:`supports` is true for.
        """
        self._backbone, self._rpn = model.backbone, StaticRPN(model.proposal_generator)
        self._pixels = PixelTables()

    @classmethod
    def supports(cls, model):
        return super().supports(model) and StaticRPN.supports(model.proposal_generator)

    @staticmethod
    def sparse_modules(model):
        return model.backbone, model.proposal_generator.rpn_head

    def network(self, images):
        return tuple(self._rpn.head(self._backbone(images)))

    @torch.no_grad()
    def __call__(self, logits, deltas, sizes):
        """
        Args:
            logits, deltas, sizes: as in :class:`StaticRPN`.

        Returns:
            StaticProposals: those of N images.
        """
        proposals, objectness = self._rpn(logits, deltas, sizes)
        classes = torch.zeros_like(objectness, dtype=torch.int64)
        return StaticProposals.of_boxes(
            *(objectness > -torch.inf, proposals, objectness, classes),
            sizes=sizes,
            pixels=self._pixels[sizes, proposals.device],
            num_slots=proposals.shape[1],
        )
