"""The best dense network to compare with: batch norm folded, channels last, any dtype."""

import copy

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn

__all__ = ["fold_batch_norm"]


def fold_batch_norm(module):
    """
    Args:
        module (nn.Module): in eval mode, of Detectron2's convolutions.

    Returns:
        nn.Module: a copy that computes the same with the batch norm inside the convolutions.
    """
    module = copy.deepcopy(module)
    for conv in [m for m in module.modules() if isinstance(m, Conv2d)]:
        norm = conv.norm
        if not isinstance(norm, (FrozenBatchNorm2d, nn.BatchNorm2d)):
            continue
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * scale
        if conv.bias is not None:
            shift = shift + conv.bias * scale
        conv.weight = nn.Parameter(conv.weight * scale[:, None, None, None], requires_grad=False)
        conv.bias = nn.Parameter(shift, requires_grad=False)
        conv.norm = None
    return module
