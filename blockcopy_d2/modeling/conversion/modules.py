"""The modules of a meta-architecture that run in blocks, registered under Detectron2's names."""

import torch
import torch.utils._pytree as pytree
from detectron2.config import configurable
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.proposal_generator import RPN_HEAD_REGISTRY

from blockcopy_d2.sparse import BlockSparseModule

__all__ = ["BlockCopyBackbone", "BlockCopyDenseHead", "BlockCopyRPNHead"]


class _FromRegistry(BlockSparseModule):
    """Wraps a module that the config names."""

    @configurable
    def __init__(self, module, backend="auto"):
        """
        Args:
            module (nn.Module): module to run block by block.
            backend (str): see :class:`blockcopy_d2.sparse.BlockSparseModule`.
        """
        super().__init__(module, backend)

    @classmethod
    def from_config(cls, cfg, input_shape):
        build_base = cls._base(cfg.MODEL.BLOCKCOPY)
        return {"module": build_base(cfg, input_shape), "backend": cfg.MODEL.BLOCKCOPY.BACKEND}


@BACKBONE_REGISTRY.register()
class BlockCopyBackbone(_FromRegistry, Backbone):
    """
    Any Detectron2 backbone. Inside :func:`blockcopy_d2.sparse.block_sparse` it executes the active
    blocks of a frame; elsewhere it behaves as the backbone it holds, whose state dict it shares.
    """

    @staticmethod
    def _base(options):
        return BACKBONE_REGISTRY.get(options.BASE_BACKBONE)

    @property
    def size_divisibility(self):
        return self.dense_module.size_divisibility

    @property
    def padding_constraints(self):
        return self.dense_module.padding_constraints

    def output_shape(self):
        return self.dense_module.output_shape()


@RPN_HEAD_REGISTRY.register()
class BlockCopyRPNHead(_FromRegistry):
    """
    Any RPN head: takes the features of all levels, returns their logits and deltas. Inside
    :func:`blockcopy_d2.sparse.block_sparse` it executes the active blocks of a frame.
    """

    @staticmethod
    def _base(options):
        return RPN_HEAD_REGISTRY.get(options.BASE_RPN_HEAD)


class BlockCopyDenseHead(BlockSparseModule):
    """
    The head of a one-stage detector. It returns copies: Detectron2's RetinaNet turns logits into
    scores in place, which would hit the logits of blocks that are not executed again in every
    frame.
    """

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        return pytree.tree_map_only(torch.Tensor, torch.clone, outputs)
