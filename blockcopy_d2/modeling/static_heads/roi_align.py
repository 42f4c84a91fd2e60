"""
RoIAlign over all levels of a feature pyramid in one launch, on channels-last maps.

The average over the samples of a bin is separable: along an axis, bilinear samples at v_i touch
pixel p with weight sum_i max(0, 1 - |v_i - p|). So a first kernel writes these weights for each
bin and axis, and a second reads every pixel that a bin touches once, where a sample by sample
evaluation reads four pixels per sample.

Shape shorthand in this module:

    N: images of a batch
    R: regions of an image
    L: feature levels, H_l x W_l pixels
    C: channels
    P: bins of a region along an axis
    T: pixels that a bin may touch along an axis
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torchvision.ops import roi_align as torchvision_roi_align

__all__ = ["RoIAlign"]


@triton.jit
def taps_kernel(
    boxes_ptr, levels_ptr, first_ptr, count_ptr, weights_ptr, heights, widths,
    min_level, canonical_level, canonical_size, sampling_ratio, T,
    ALIGNED: tl.constexpr, L: tl.constexpr, P: tl.constexpr, BP: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """
    One program per region and axis (0: y, 1: x): its level, and for each bin the first pixel it
    touches, how many, and their weights, the sum of which is 1 for a bin inside the map.
    """
    region = tl.program_id(0)
    axis = tl.program_id(1)
    x0, y0 = tl.load(boxes_ptr + region * 4), tl.load(boxes_ptr + region * 4 + 1)
    x1, y1 = tl.load(boxes_ptr + region * 4 + 2), tl.load(boxes_ptr + region * 4 + 3)
    size = tl.sqrt_rn((x1 - x0) * (y1 - y0))
    rank = tl.floor(canonical_level + tl.log2(tl.math.div_rn(size, canonical_size) + 1e-8))
    level = tl.minimum(tl.maximum(rank - min_level, 0.0), L - 1.0).to(tl.int32)
    height, width = heights[0], widths[0]
    for other in tl.static_range(1, L):
        height = tl.where(level == other, heights[other], height)
        width = tl.where(level == other, widths[other], width)
    length = tl.where(axis == 0, height, width)
    scale = tl.exp2(-(min_level + level.to(tl.float32)))
    offset = 0.5 if ALIGNED else 0.0
    start = tl.where(axis == 0, y0, x0) * scale - offset
    extent = tl.where(axis == 0, y1, x1) * scale - offset - start
    if not ALIGNED:
        extent = tl.maximum(extent, 1.0)
    bin_size = tl.math.div_rn(extent, P + 0.0)
    samples = tl.where(sampling_ratio > 0, sampling_ratio, tl.ceil(bin_size).to(tl.int32))
    step = tl.math.div_rn(bin_size, tl.maximum(samples, 1).to(tl.float32))
    share = tl.math.div_rn(1.0, tl.maximum(samples, 1).to(tl.float32))
    last_pixel = length - 1.0
    pbin = tl.arange(0, BP)
    bin_start = start + pbin.to(tl.float32) * bin_size
    lowest = tl.minimum(tl.maximum(bin_start + 0.5 * step, 0.0), last_pixel)
    highest = bin_start + (samples.to(tl.float32) - 0.5) * step
    highest = tl.minimum(tl.maximum(highest, 0.0), last_pixel)
    first = tl.floor(lowest).to(tl.int32)
    count = tl.minimum(tl.floor(highest).to(tl.int32) + 2 - first, T)
    count = tl.max(tl.where((pbin < P) & (samples > 0), count, 0), 0)
    tap = tl.arange(0, BT)
    pixel = (first[:, None] + tap[None, :]).to(tl.float32)
    weights = tl.zeros((BP, BT), tl.float32)
    for sample in range(0, samples):
        position = bin_start + (sample + 0.5) * step
        inside = (position >= -1.0) & (position <= length)
        position = tl.minimum(tl.maximum(position, 0.0), last_pixel)
        weight = tl.maximum(1.0 - tl.abs(position[:, None] - pixel), 0.0)
        weights += tl.where(inside[:, None], weight, 0.0)
    side = region * 2 + axis
    tl.store(levels_ptr + region, level, mask=axis == 0)
    tl.store(count_ptr + side, count)
    tl.store(first_ptr + side * P + pbin, first, mask=pbin < P)
    target = weights_ptr + (side * P + pbin)[:, None] * T + tap[None, :]
    tl.store(target, weights * share, mask=(pbin < P)[:, None] & (tap < count)[None, :])


@triton.jit
def roi_align_kernel(
    maps, heights, widths, levels_ptr, first_ptr, count_ptr, weights_ptr, out_ptr, R, C, T,
    L: tl.constexpr, P: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """A program computes a row of bins of a region, BC channels."""
    region = tl.program_id(0) // P
    row = tl.program_id(0) % P
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    level = tl.load(levels_ptr + region)
    source, height, width = maps[0], heights[0], widths[0]
    for other in tl.static_range(1, L):
        source = tl.where(level == other, maps[other], source)
        height = tl.where(level == other, heights[other], height)
        width = tl.where(level == other, widths[other], width)
    bins = tl.arange(0, BP)
    y = tl.load(first_ptr + region * 2 * P + row)
    x = tl.load(first_ptr + (region * 2 + 1) * P + bins, mask=bins < P, other=0)
    weights_y = weights_ptr + (region * 2 * P + row) * T
    weights_x = weights_ptr + ((region * 2 + 1) * P + bins) * T
    columns = tl.load(count_ptr + region * 2 + 1)
    source += (region // R * height + y) * width * C
    result = tl.zeros((BP, BC), tl.float32)
    for tap_y in range(0, tl.load(count_ptr + region * 2)):
        weight_y = tl.load(weights_y + tap_y)
        for tap_x in range(0, columns):
            weight = weight_y * tl.load(weights_x + tap_x, mask=bins < P, other=0.0)
            # Pixels of no weight are not read: they may lie beyond the map.
            value = tl.load(
                source + ((x + tap_x) * C)[:, None] + channel[None, :],
                mask=(weight > 0)[:, None] & (channel < C)[None, :], other=0.0,
            )  # fmt: skip
            result += weight[:, None] * value.to(tl.float32)
        source += width * C
    target = out_ptr + ((region * P + row) * P + bins)[:, None] * C + channel[None, :]
    mask = (bins < P)[:, None] & (channel < C)[None, :]
    tl.store(target, result.to(out_ptr.dtype.element_ty), mask=mask)


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
        run = roi_align_triton if boxes.is_cuda else roi_align_reference
        return run(self, features, boxes)


def roi_align_triton(align, features, boxes):
    """As :meth:`RoIAlign.__call__`."""
    features = [x.contiguous(memory_format=torch.channels_last) for x in features]
    images, channels = features[0].shape[:2]
    heights = tuple(x.shape[2] for x in features)
    widths = tuple(x.shape[3] for x in features)
    side, num_regions, device = align.output_size, boxes.shape[0] * boxes.shape[1], boxes.device
    # Boxes lie within the map, so bins have at most longest / P pixels, and touch two more.
    longest = max(*heights, *widths)
    taps = math.ceil(longest / side) + 2
    levels = torch.empty(num_regions, dtype=torch.int32, device=device)
    first = torch.empty(num_regions, 2, side, dtype=torch.int32, device=device)
    count = torch.empty(num_regions, 2, dtype=torch.int32, device=device)
    weights = torch.empty(num_regions, 2, side, taps, dtype=torch.float32, device=device)
    constants = dict(L=len(features), P=side, BP=triton.next_power_of_2(side))
    taps_kernel[num_regions, 2](
        boxes.contiguous(), levels, first, count, weights, heights, widths,
        float(align.min_level), float(align.canonical_level), float(align.canonical_size),
        align.sampling_ratio, taps, ALIGNED=align.aligned, BT=triton.next_power_of_2(taps),
        num_warps=2, **constants,
    )  # fmt: skip
    out = torch.empty(
        num_regions, channels, side, side, dtype=features[0].dtype, device=device,
        memory_format=torch.channels_last,
    )  # fmt: skip
    bc = min(triton.next_power_of_2(channels), 256)
    roi_align_kernel[num_regions * side, triton.cdiv(channels, bc)](
        tuple(features), heights, widths, levels, first, count, weights, out,
        boxes.shape[1], channels, taps, BC=bc, num_warps=4, **constants,
    )  # fmt: skip
    return out


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
