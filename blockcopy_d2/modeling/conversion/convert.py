"""Makes a dense model of Detectron2 block-sparse."""

import logging

from detectron2.utils.logger import log_first_n
from torch import nn

from blockcopy_d2.sparse import BlockSparseModule

from .modules import BlockCopyBackbone, BlockCopyDenseHead, BlockCopyRPNHead
from .roi_align import convert_roi_align

__all__ = ["convert_model"]


# Attributes of meta-architectures that hold fully convolutional parts, and their block-sparse
# classes.
_CONVERSIONS = {
    "backbone": BlockCopyBackbone,
    "proposal_generator.rpn_head": BlockCopyRPNHead,
    "head": BlockCopyDenseHead,
    "sem_seg_head": BlockSparseModule,
}


def convert_model(base, backend="auto"):
    """
    Make the backbone and the fully convolutional heads of a meta-architecture block-sparse. Other
    heads stay as they are. So does a model whose backbone is not fully convolutional: the attention
    of a transformer (ViT, Swin) has no blocks. A warning names it once. RoI pooling reads the
    features in the layout that block-sparse modules keep them in.

    Args:
        base (nn.Module): a meta-architecture, changed in place. Modules that are block-sparse
            already are left alone.
        backend (str): see :class:`blockcopy_d2.sparse.BlockSparseModule`.

    Returns:
        bool: whether the model runs in blocks.
    """
    runs_in_blocks = _is_convolutional(base.backbone)
    if not runs_in_blocks:
        log_first_n(
            logging.WARNING,
            f"{_name(base.backbone)} is not fully convolutional: {_name(base)} cannot be run in"
            " blocks and runs densely.",
            name=__name__,
            key="message",
        )
    for path, convert in _CONVERSIONS.items():
        owner, _, name = path.rpartition(".")
        owner = getattr(base, owner, None) if owner else base
        module = getattr(owner, name, None)
        if not isinstance(module, nn.Module):
            continue
        is_converted = isinstance(module, BlockSparseModule)
        if runs_in_blocks and not is_converted and _is_convolutional(module):
            setattr(owner, name, convert(module=module, backend=backend))
        elif not runs_in_blocks and is_converted:
            setattr(owner, name, module.dense_module)
    if runs_in_blocks:
        convert_roi_align(base)
    return runs_in_blocks


def _is_convolutional(module):
    # A linear layer works on tokens or regions, a 1D convolution on points.
    return not any(isinstance(m, (nn.Linear, nn.Conv1d)) for m in module.modules())


def _name(module):
    return type(getattr(module, "dense_module", module)).__name__
