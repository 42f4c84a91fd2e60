"""
RoIAlign over all levels of a feature pyramid in one launch, on channels-last maps.

Shape shorthand in this module:

    N: images of a batch
    R: regions of an image
    L: feature levels, H_l x W_l pixels
    C: channels
    P: bins of a region along an axis
"""

from dataclasses import dataclass

import torch
from torchvision.ops import roi_align as torchvision_roi_align

from blockcopy_d2.kernels import triton_runs_on

__all__ = ["RoIAlign"]


@dataclass(frozen=True)
class RoIAlign:
    """
    Detectron2's ROIPooler for axis-aligned boxes, as a function of fixed shapes.

    Attributes:
        output_size (int): P.
        min_level (int): log2 of the first map's stride; each further one has twice the stride.
        sampling_ratio (int): samples per bin and axis; 0: as many as a bin has pixels, rounded up.
        aligned (bool): whether the centre of a pixel is at half a pixel.
        canonical_size, canonical_level: a box of this side in pixels goes to this level.
    """

    output_size: int
    min_level: int
    sampling_ratio: int = 0
    aligned: bool = True
    canonical_size: float = 224
    canonical_level: int = 4

    @classmethod
    def from_pooler(cls, pooler):
        """
        Args:
            pooler (ROIPooler): of type ROIAlign or ROIAlignV2, with square outputs.
        """
        first = pooler.level_poolers[0]
        return cls(
            output_size=pooler.output_size[0],
            min_level=pooler.min_level,
            sampling_ratio=first.sampling_ratio,
            aligned=first.aligned,
            canonical_size=pooler.canonical_box_size,
            canonical_level=pooler.canonical_level,
        )

    def __call__(self, features, boxes):
        """
        Args:
            features (list[Tensor]): maps (N, C, H_l, W_l), fastest where channels-last.
            boxes (Tensor): float32 (N, R, 4) in pixels of the network's input, within the maps.

        Returns:
            Tensor: (N R, C, P, P), channels-last, of the features' dtype; computed in float32.
            Empty boxes give zeros.
        """
        if triton_runs_on(boxes.device):
            from .triton_ops.roi_align import roi_align_triton

            return roi_align_triton(self, features, boxes)
        return roi_align_reference(self, features, boxes)


def roi_align_reference(align, features, boxes):
    """As :meth:`RoIAlign.__call__`, by torchvision level by level."""
    images, regions = boxes.shape[:2]
    image = torch.arange(images, device=boxes.device).repeat_interleave(regions)
    boxes = boxes.flatten(0, 1)
    size = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    rank = torch.floor(align.canonical_level + torch.log2(size / align.canonical_size + 1e-8))
    level = (rank - align.min_level).clamp(0, len(features) - 1)
    numbered = torch.cat([image[:, None].to(boxes), boxes], dim=1)
    side = align.output_size
    out = torch.zeros(len(boxes), features[0].shape[1], side, side, device=boxes.device)
    for index, x in enumerate(features):
        here = (level == index).nonzero()[:, 0]
        out[here] = torchvision_roi_align(
            x.float().contiguous(), numbered[here], side, 2.0 ** -(align.min_level + index),
            align.sampling_ratio, align.aligned,
        )  # fmt: skip
    return out.to(features[0].dtype, memory_format=torch.channels_last)
