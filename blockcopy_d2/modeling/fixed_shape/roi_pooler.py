"""
RoIAlign over all levels of a feature pyramid in one launch, on channels-last maps.

Shape shorthand in this module:

    N: images of a batch
    R: regions of an image
    L: feature levels, H_l x W_l pixels
    C: channels
    P: bins of a region along an axis
"""

import torch
from detectron2.structures import Boxes

from blockcopy_d2.kernels import triton_runs_on

__all__ = ["pool_regions"]


def pool_regions(pooler, features, boxes):
    """
    Detectron2's ROIPooler for axis-aligned boxes, as a function of fixed shapes.

    Args:
        pooler (ROIPooler): pooler of type ROIAlign or ROIAlignV2, with square outputs of P x P.
        features (list[Tensor]): L maps (N, C, H_l, W_l), fastest where channels-last.
        boxes (Tensor): float32 (N, R, 4) in pixels of the network's input, within the maps.

    Returns:
        Tensor: (N R, C, P, P), channels-last, of the features' dtype; computed in float32.
    """
    if triton_runs_on(boxes.device):
        from .triton_ops.roi_pooler import pool_regions_triton

        return pool_regions_triton(pooler, features, boxes)
    return pool_regions_reference(pooler, features, boxes)


def pool_regions_reference(pooler, features, boxes):
    """:func:`pool_regions` by the pooler itself, level by level."""
    pooled = pooler([x.float() for x in features], [Boxes(image) for image in boxes])
    return pooled.to(features[0].dtype, memory_format=torch.channels_last)
