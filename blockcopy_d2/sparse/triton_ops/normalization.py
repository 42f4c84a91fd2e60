"""Statistics of whole maps at the cost of the active blocks: group norm and global mean.

Every block keeps the mean and the sum of squared deviations of each of its channels; the active
ones renew theirs, and all are combined as in Chan, Golub & LeVeque (1983): exact on the composite
map, and stable where a sum of squares is not.

Shape shorthand: N streams, C channels, H x W pixels of a map, GH x GW blocks of T x T pixels.
"""

import torch
import triton
import triton.language as tl

from blockcopy_d2.kernels.dependent_launch import begin
from blockcopy_d2.kernels.launch import Launch

from .block_launch import BlockLaunch
from .geometry import locate, pixel_number


@triton.jit
def statistics_kernel(
    blocks_ptr,
    count_ptr,
    tiling,
    x_map,
    statistics,
    C,
    DEVIATION: tl.constexpr,
    WIDE: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
    PDL: tl.constexpr,
):
    """A program renews BC channels of one active block: its mean, then its deviations."""
    begin(PDL)
    place = tl.program_id(0)
    count = tl.load(count_ptr)
    if place >= count:
        return
    T = tiling[0]
    mean_ptr, deviation_ptr = statistics
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    within = channel < C
    total = tl.zeros((BC,), tl.float32)
    area = 0.0
    for first in range(0, T * T, BM):
        value, valid = _block_pixels(
            blocks_ptr, place, tiling, x_map, first, channel, within, WIDE, BM
        )
        total += tl.sum(tl.where(valid[:, None], value, 0.0), 0)
        area += tl.sum(valid.to(tl.float32), 0)
    mean = total / area
    target = tl.load(blocks_ptr + place) * C + channel
    tl.store(mean_ptr + target, mean, mask=within)
    if DEVIATION:
        deviation = tl.zeros((BC,), tl.float32)
        for first in range(0, T * T, BM):
            value, valid = _block_pixels(
                blocks_ptr, place, tiling, x_map, first, channel, within, WIDE, BM
            )
            value = tl.where(valid[:, None], value - mean[None, :], 0.0)
            deviation += tl.sum(value * value, 0)
        tl.store(deviation_ptr + target, deviation, mask=within)


@triton.jit
def _block_pixels(
    blocks_ptr, place, tiling, x_map, first, channel, within, WIDE: tl.constexpr, BM: tl.constexpr
):
    """BM pixels of the block at `place` in the list, from its pixel `first` on, and which exist."""
    T = tiling[0]
    x_ptr, H, W, x_row = x_map
    m = place * T * T + first + tl.arange(0, BM)
    stream, y, x, valid = locate(m, blocks_ptr, (place + 1) * T * T, tiling)
    valid = valid & (y < H) & (x < W)
    pixel = pixel_number(stream, y, x, H, W, WIDE)
    source = x_ptr + (pixel * x_row)[:, None] + channel[None, :]
    value = tl.load(source, mask=valid[:, None] & within[None, :], other=0.0)
    return value.to(tl.float32), valid


@triton.jit
def combine_kernel(
    tiling,
    size,
    C,
    statistics,
    affine,
    results,  # scale and shift; the mean for the first, where there is no normalization
    eps,
    PER_GROUP: tl.constexpr,
    NORMALIZE: tl.constexpr,
    AFFINE: tl.constexpr,
    BLOCKS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PDL: tl.constexpr,
):
    """One group of channels of one stream: its mean, or the scale and shift that normalize it."""
    begin(PDL)
    T, GH, GW = tiling
    H, W = size
    mean_ptr, deviation_ptr = statistics
    weight_ptr, bias_ptr = affine
    scale_ptr, shift_ptr = results
    stream, group = tl.program_id(0), tl.program_id(1)
    inside = tl.arange(0, CHANNELS)
    channel = group * PER_GROUP + inside
    within = inside < PER_GROUP
    total = 0.0
    for first in range(0, GH * GW, BLOCKS):
        mean, area, source, mask = _load_means(
            mean_ptr, stream, first, tiling, size, C, channel, within, BLOCKS
        )
        total += tl.sum(tl.sum(mean * area, 1), 0)
    num_values = (PER_GROUP * H * W).to(tl.float32)
    center = total / num_values
    if NORMALIZE:
        spread = 0.0
        for first in range(0, GH * GW, BLOCKS):
            mean, area, source, mask = _load_means(
                mean_ptr, stream, first, tiling, size, C, channel, within, BLOCKS
            )
            deviation = tl.load(deviation_ptr + source, mask=mask, other=0.0)
            distance = tl.where(mask, mean - center, 0.0)
            spread += tl.sum(tl.sum(deviation + distance * distance * area, 1), 0)
        scale = tl.zeros((CHANNELS,), tl.float32) + tl.rsqrt(spread / num_values + eps)
        if AFFINE:
            scale = scale * tl.load(weight_ptr + channel, mask=within, other=0.0)
        shift = -center * scale
        if AFFINE:
            shift += tl.load(bias_ptr + channel, mask=within, other=0.0)
        tl.store(scale_ptr + stream * C + channel, scale, mask=within)
        tl.store(shift_ptr + stream * C + channel, shift, mask=within)
    else:
        result = (tl.zeros((CHANNELS,), tl.float32) + center).to(scale_ptr.dtype.element_ty)
        tl.store(scale_ptr + stream * C + channel, result, mask=within)


@triton.jit
def _load_means(mean_ptr, stream, first, tiling, size, C, channel, within, BLOCKS: tl.constexpr):
    """Means (BLOCKS, CHANNELS) of some blocks of a stream, their pixels inside the map, where
    they stand, and which exist."""
    T, GH, GW = tiling
    H, W = size
    block = first + tl.arange(0, BLOCKS)
    rows = tl.minimum(T, H - block // GW * T)
    columns = tl.minimum(T, W - block % GW * T)
    mask = (block < GH * GW)[:, None] & within[None, :]
    area = tl.where(mask, (rows * columns).to(tl.float32)[:, None], 0.0)
    source = (stream * GH * GW + block)[:, None] * C + channel[None, :]
    return tl.load(mean_ptr + source, mask=mask, other=0.0), area, source, mask


class StatisticsLaunch:
    """Statistics of a map, bound to their memory; calling it with a BlockList renews them.

    With a normalization, `scale` and `shift`, float32 (N, C), are then those that a group norm
    applies; without, `scale` is the mean (N, C) of every channel, in the map's own dtype.
    """

    def __init__(self, x, tiling, statistics, *, groups, normalize=None, device):
        """
        Args:
            x: state.FeatureMap.
            tiling: Tiling of its blocks.
            statistics: (means, deviations), float32 (N, GH * GW, C) each, kept between frames.
            groups: number of groups of channels; statistics are combined within a group.
            normalize: (weight, bias, eps) of a group norm, or None for the mean.
            device: Device.
        """
        streams, _, channels = statistics[0].shape
        weight, bias, eps = normalize or (None, None, 0.0)
        dtype = torch.float32 if normalize else x.rows.dtype
        self.scale = x.rows.new_empty(streams, channels, dtype=dtype)
        self.shift = torch.empty_like(self.scale)
        affine = tuple(
            self.scale if part is None else part.float().contiguous() for part in (weight, bias)
        )
        bc, per_group = min(triton.next_power_of_2(channels), 64), channels // groups
        options = dict(num_warps=4, **device.launch_options)
        self._renew = BlockLaunch(
            statistics_kernel,
            (tiling.num_blocks, triton.cdiv(channels, bc)),
            (tiling.sides, x.operand, statistics, channels),
            dict(DEVIATION=normalize is not None, WIDE=x.wide, BM=64, BC=bc, **options),
        )
        constants = dict(NORMALIZE=normalize is not None, AFFINE=weight is not None, BLOCKS=64)
        constants |= dict(PER_GROUP=per_group, CHANNELS=triton.next_power_of_2(per_group))
        results = (self.scale, self.shift)
        self._combine = Launch(
            combine_kernel,
            (streams, groups),
            (tiling.sides, x.size, channels, statistics, affine, results, eps),
            constants | options,
        )

    def __call__(self, blocks):
        self._renew(blocks)
        self._combine()


def statistics_reference(x, *, groups, normalize=None):
    """(scale, shift) that a group norm applies to a whole map (N, C, H, W), float32 (N, C) each;
    the means (N, C) and None where it is not normalized."""
    streams, channels = x.shape[:2]
    values = x.float().reshape(streams, groups, -1)
    mean = values.mean(2, keepdim=True).expand(-1, -1, channels // groups).flatten(1)
    if normalize is None:
        return mean.to(x.dtype), None
    weight, bias, eps = normalize
    variance = values.var(2, keepdim=True, correction=0).expand(-1, -1, channels // groups)
    scale = torch.rsqrt(variance.flatten(1) + eps) * (1 if weight is None else weight.float())
    return scale, (0 if bias is None else bias.float()) - mean * scale
