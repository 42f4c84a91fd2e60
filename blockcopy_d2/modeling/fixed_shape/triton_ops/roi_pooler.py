"""
Kernels of :mod:`..roi_pooler`, whose shape shorthand is used here.

The average over the samples of a bin is separable: along an axis, bilinear samples at v_i touch
pixel p with weight sum_i max(0, 1 - |v_i - p|). So a first kernel writes these weights for each
bin and axis, and a second reads every pixel that a bin touches once, where a sample by sample
evaluation reads four pixels per sample.
Further shorthand: T, pixels that a bin may touch along an axis.
"""

import math

import torch
import triton
import triton.language as tl

from blockcopy_d2.networks.mgan.roi_heads import NarrowROIPooler

from .levels import of_level


@triton.jit
def taps_kernel(
    boxes_ptr,
    levels_ptr,
    taps,
    heights,
    widths,
    pyramid,  # min_level, canonical_level, canonical_size
    sampling_ratio,
    T,
    ALIGNED: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    BP: tl.constexpr,
    BT: tl.constexpr,
):
    """
    One program per region and axis (0: y, 1: x): its level, and for each bin the first pixel it
    touches, how many, and their weights, the sum of which is 1 for a bin inside the map.
    """
    first_ptr, count_ptr, weights_ptr = taps
    min_level, canonical_level, canonical_size = pyramid
    region = tl.program_id(0).to(tl.int64)
    axis = tl.program_id(1)
    x0, y0 = tl.load(boxes_ptr + region * 4), tl.load(boxes_ptr + region * 4 + 1)
    x1, y1 = tl.load(boxes_ptr + region * 4 + 2), tl.load(boxes_ptr + region * 4 + 3)
    size = tl.sqrt_rn((x1 - x0) * (y1 - y0))
    rank = tl.floor(canonical_level + tl.log2(tl.math.div_rn(size, canonical_size) + 1e-8))
    level = tl.minimum(tl.maximum(rank - min_level, 0.0), L - 1.0).to(tl.int32)
    length = tl.where(axis == 0, of_level(heights, level, L), of_level(widths, level, L))
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
    maps,
    heights,
    widths,
    levels_ptr,
    taps,
    out_ptr,
    R,
    C,
    T,
    L: tl.constexpr,
    P: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    """A program computes a row of bins of a region, BC channels."""
    first_ptr, count_ptr, weights_ptr = taps
    region = (tl.program_id(0) // P).to(tl.int64)
    row = tl.program_id(0) % P
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    level = tl.load(levels_ptr + region)
    source = of_level(maps, level, L)
    height, width = of_level(heights, level, L), of_level(widths, level, L)
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
            pixel = source + ((x + tap_x) * C)[:, None] + channel[None, :]
            seen = (weight > 0)[:, None] & (channel < C)[None, :]
            value = tl.load(pixel, mask=seen, other=0.0)
            result += weight[:, None] * value.to(tl.float32)
        source += width * C
    target = out_ptr + ((region * P + row) * P + bins)[:, None] * C + channel[None, :]
    mask = (bins < P)[:, None] & (channel < C)[None, :]
    tl.store(target, result.to(out_ptr.dtype.element_ty), mask=mask)


def pool_regions_triton(pooler, features, boxes):
    """Runs :func:`pool_regions` on a GPU."""
    features = [x.contiguous(memory_format=torch.channels_last) for x in features]
    if isinstance(pooler, NarrowROIPooler):
        boxes = boxes + pooler.shift
    images, channels = features[0].shape[:2]
    heights = tuple(x.shape[2] for x in features)
    widths = tuple(x.shape[3] for x in features)
    num_regions, device = boxes.shape[0] * boxes.shape[1], boxes.device
    side, align = pooler.output_size[0], pooler.level_poolers[0]
    # Boxes lie within the map, so bins have at most longest / P pixels, and touch two more.
    longest = max(*heights, *widths)
    taps = math.ceil(longest / side) + 2
    levels = torch.empty(num_regions, dtype=torch.int32, device=device)
    first = torch.empty(num_regions, 2, side, dtype=torch.int32, device=device)
    count = torch.empty(num_regions, 2, dtype=torch.int32, device=device)
    weights = torch.empty(num_regions, 2, side, taps, dtype=torch.float32, device=device)
    constants = dict(L=len(features), P=side, BP=triton.next_power_of_2(side))
    pyramid = pooler.min_level, pooler.canonical_level, pooler.canonical_box_size
    found, sizes = (first, count, weights), (heights, widths)
    bins = dict(ALIGNED=align.aligned, BT=triton.next_power_of_2(taps), num_warps=2)
    arguments = (boxes.contiguous(), levels, found, *sizes, tuple(map(float, pyramid)))
    taps_kernel[num_regions, 2](*arguments, align.sampling_ratio, taps, **constants, **bins)
    # Channels last, without a copy.
    out = features[0].new_empty(num_regions, side, side, channels).permute(0, 3, 1, 2)
    bc = min(triton.next_power_of_2(channels), 256)
    arguments = (tuple(features), *sizes, levels, found, out, boxes.shape[1], channels, taps)
    grid = (num_regions * side, triton.cdiv(channels, bc))
    roi_align_kernel[grid](*arguments, BC=bc, num_warps=4, **constants)
    return out
