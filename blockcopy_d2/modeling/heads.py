import torch
import torch.utils._pytree as pytree
from torch import nn

from blockcopy_d2.sparse import BlockSparseModule

__all__ = ["BlockCopyDenseHead", "convert_heads"]


class BlockCopyDenseHead(BlockSparseModule):
    """
    The head of a one-stage detector. It hands out copies: Detectron2's RetinaNet turns logits into
    scores in place, which would turn those of the blocks not executed again at every frame.
    """

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        return pytree.tree_map_only(torch.Tensor, torch.clone, outputs)


def convert_heads(base, backend="auto"):
    """
    Make the fully convolutional heads of a meta-architecture block-sparse that are known by an
    attribute only. (Backbone and RPN head are built by name, from Detectron2's registries.)

    Args:
        base (nn.Module): a meta-architecture, changed in place.
        backend (str): see :class:`blockcopy_d2.sparse.BlockSparseModule`.

    Returns:
        nn.Module: ``base``.
    """
    for name, convert in (("head", BlockCopyDenseHead), ("sem_seg_head", BlockSparseModule)):
        head = getattr(base, name, None)
        if isinstance(head, nn.Module) and not isinstance(head, BlockSparseModule):
            setattr(base, name, convert(head, backend))
    return base
