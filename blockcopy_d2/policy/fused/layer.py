"""
One layer of the policy network: a convolution, and the batch norm behind it.

The launch normalizes what it reads, adds the residual and rectifies, and writes plain sums. On the
way each program keeps the mean and the squared deviations of what it writes; the last one to finish
combines them, always in the same order, to the center, scale and shift that normalize these sums
where the next layer reads them: of each stream by its own, as the network's batch norms do.
Combined as in Chan, Golub & LeVeque (1983).

Shape shorthand in this module:

    N: streams
    H, W, C: size and channels of what a layer reads
    OH, OW, O: of what it writes, with the channels of a shortcut beside it
"""

import dataclasses
import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from blockcopy_d2.sparse.triton_ops.geometry import begin

__all__ = ["CHANNELS", "LayerLauncher", "Map"]

# Channels of a map are padded to a multiple, for tensor cores.
CHANNELS = 16

# Output pixels and channels that a program computes at a time, the best product first; launches
# that these do not fill the GPU with take a later one.
_TILES = (((8, 16), 64), ((4, 16), 64), ((4, 8), 32), ((4, 4), 32))

# Programs of a launch per multiprocessor: as many as run at a time. More only make more statistics.
_PROGRAMS_PER_SM = 4


# The size of a map must not make a new variant of the kernel.
@triton.jit(do_not_specialize=["H", "W", "OH", "OW", "tiles_x", "tiles"])
def layer_kernel(
    x_ptr, affine_ptr, residual_ptr, residual_affine_ptr, weight_ptr, bias_ptr, out_ptr,
    norm_weight_ptr, norm_bias_ptr, shortcut_weight_ptr, shortcut_bias_ptr,
    partial_ptr, count_ptr, arrivals_ptr, out_affine_ptr,
    H, W, OH, OW, tiles_x, tiles, eps,
    C: tl.constexpr, X_ROW: tl.constexpr,  # channels that are read, and that the map has
    RESIDUAL_ROW: tl.constexpr,  # channels of the residual's map, 0 without
    OUT: tl.constexpr, SHORTCUT: tl.constexpr,  # channels that it and a shortcut beside it write
    STRIDE: tl.constexpr,
    KIND: tl.constexpr,  # x as it is: 0, normalized: 1, with a residual: 2, a rectified one: 3
    STATISTICS: tl.constexpr,  # whether a normalization follows; if not, a bias
    TH: tl.constexpr, TW: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ROWS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out = conv3x3(relu(normalized x + residual)), and what normalizes out where it is read.

    A program computes some tiles of TH x TW pixels and BN channels. The channels of a shortcut,
    which is a 1x1 convolution, reduce over the tap in the centre.
    """
    BM: tl.constexpr = TH * TW
    ROW: tl.constexpr = OUT + SHORTCUT
    STEPS_PER_TAP: tl.constexpr = C // BK
    begin(PDL)
    n_tile, stream = tl.program_id(1), tl.program_id(2).to(tl.int64)
    channel = n_tile * BN + tl.arange(0, BN)
    exists = channel < ROW
    first, last = 0, 9 * STEPS_PER_TAP
    if SHORTCUT > 0:
        is_shortcut = n_tile * BN >= OUT
        first = tl.where(is_shortcut, 4 * STEPS_PER_TAP, first)
        last = tl.where(is_shortcut, 5 * STEPS_PER_TAP, last)

    k = tl.arange(0, BK)
    x_base = x_ptr + stream * H * W * X_ROW
    out_base = out_ptr + stream * OH * OW * ROW
    weights = weight_ptr + channel[:, None] * (9 * C) + k[None, :]
    residual_base = residual_ptr + stream * H * W * RESIDUAL_ROW
    affine = _affine(affine_ptr, stream, k, X_ROW, x_ptr.dtype.element_ty, KIND > 0)
    residual_affine = _affine(
        residual_affine_ptr, stream, k, RESIDUAL_ROW, x_ptr.dtype.element_ty, KIND > 1
    )

    m = tl.arange(0, BM)
    count = 0.0
    mean, deviation = tl.zeros((BN,), tl.float32), tl.zeros((BN,), tl.float32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        y = tile // tiles_x * TH + m // TW
        x = tile % tiles_x * TW + m % TW
        valid = (y < OH) & (x < OW)
        acc = tl.zeros((BM, BN), tl.float32)
        if KIND == 0:
            for step in range(first, last):
                a, other, inside = _read(
                    x_base, residual_base, step, last, y, x, H, W, k,
                    C, X_ROW, RESIDUAL_ROW, STRIDE, BK,
                )  # fmt: skip
                b = tl.load(weights + step * BK, mask=exists[:, None], other=0.0)
                acc = tl.dot(a, b.T, acc, input_precision="tf32")
        else:
            # While a step is multiplied, the next is normalized and the one after on its way.
            raw, other, inside = _read(
                x_base, residual_base, first, last, y, x, H, W, k,
                C, X_ROW, RESIDUAL_ROW, STRIDE, BK,
            )  # fmt: skip
            a = _normalize(raw, affine, other, residual_affine, inside, KIND)
            raw, other, inside = _read(
                x_base, residual_base, first + 1, last, y, x, H, W, k,
                C, X_ROW, RESIDUAL_ROW, STRIDE, BK,
            )  # fmt: skip
            for step in range(first, last):
                b = tl.load(weights + step * BK, mask=exists[:, None], other=0.0)
                acc = tl.dot(a, b.T, acc, input_precision="tf32")
                a = _normalize(raw, affine, other, residual_affine, inside, KIND)
                raw, other, inside = _read(
                    x_base, residual_base, step + 2, last, y, x, H, W, k,
                    C, X_ROW, RESIDUAL_ROW, STRIDE, BK,
                )  # fmt: skip

        mask = valid[:, None] & exists[None, :]
        target = out_base + ((y * OW + x) * ROW)[:, None] + channel[None, :]
        if STATISTICS:
            out = acc.to(out_ptr.dtype.element_ty)
            tl.store(target, out, mask=mask)
            out = tl.where(mask, out.to(tl.float32), 0.0)
            area = tl.sum(valid.to(tl.float32), 0)
            tile_mean = tl.sum(out, 0) / area
            distance = tl.where(mask, out - tile_mean[None, :], 0.0)
            step_to = tile_mean - mean
            deviation += tl.sum(distance * distance, 0)
            deviation += step_to * step_to * (count * area / (count + area))
            mean += step_to * (area / (count + area))
            count += area
        else:
            tl.store(target, acc + tl.load(bias_ptr), mask=mask)

    if STATISTICS:
        group = stream * tl.num_programs(1) + n_tile
        counts = count_ptr + group * tl.num_programs(0)
        partials = partial_ptr + stream * tl.num_programs(0) * 2 * ROW + channel
        own = partials + tl.program_id(0) * 2 * ROW
        tl.store(own, mean)
        tl.store(own + ROW, deviation)
        tl.store(counts + tl.program_id(0), count)
        tl.debug_barrier()  # all is written before it is announced
        arrived = tl.atomic_add(arrivals_ptr + group, 1, sem="acq_rel")
        if arrived == tl.num_programs(0) - 1:
            mean, variance = _combine(partials, counts, tl.num_programs(0), ROW, BN, ROWS)
            factor = tl.rsqrt(variance + eps)
            if n_tile * BN < OUT:
                factor *= tl.load(norm_weight_ptr + channel)
                bias = tl.load(norm_bias_ptr + channel)
            else:
                factor *= tl.load(shortcut_weight_ptr + channel - OUT)
                bias = tl.load(shortcut_bias_ptr + channel - OUT)
            out_affine = out_affine_ptr + stream * 3 * ROW + channel
            # In half precision, distances from the mean are more exact than products with it.
            rounded = mean.to(out_ptr.dtype.element_ty).to(tl.float32)
            tl.store(out_affine, rounded)
            tl.store(out_affine + ROW, factor)
            tl.store(out_affine + 2 * ROW, bias - (mean - rounded) * factor)


@triton.jit
def _read(
    x_base, residual_base, step, last, y, x, H, W, k,
    C: tl.constexpr, X_ROW: tl.constexpr, RESIDUAL_ROW: tl.constexpr, STRIDE: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """What a step of the reduction reads for output pixels (y, x), and which of it exists.

    Little but the tap changes from step to step, so little has to be computed anew.
    """
    tap = step // (C // BK)
    tap_y, tap_x, c = tap // 3, tap % 3, step % (C // BK) * BK
    iy, ix = y * STRIDE - 1, x * STRIDE - 1
    height = tl.where(step < last, H, 0).to(tl.uint32)
    # What is negative is large without a sign.
    inside = (iy + tap_y).to(tl.uint32) < height
    inside = (inside & ((ix + tap_x).to(tl.uint32) < W.to(tl.uint32)))[:, None]
    pixel, tap_pixel = (iy * W + ix)[:, None], tap_y * W + tap_x
    source = x_base + (tap_pixel * X_ROW + c) + (pixel * X_ROW + k[None, :])
    a = tl.load(source, mask=inside, other=0.0)
    other = a
    if RESIDUAL_ROW > 0:
        source = residual_base + (tap_pixel * RESIDUAL_ROW + c)
        other = tl.load(source + (pixel * RESIDUAL_ROW + k[None, :]), mask=inside, other=0.0)
    return a, other, inside


@triton.jit
def _affine(affine_ptr, stream, k, ROW: tl.constexpr, dtype: tl.constexpr, EXISTS: tl.constexpr):
    """(center, scale, shift) of the channels k."""
    if EXISTS:
        affine = affine_ptr + stream * 3 * ROW + k[None, :]
        center, scale = tl.load(affine).to(dtype), tl.load(affine + ROW).to(dtype)
        shift = tl.load(affine + 2 * ROW).to(dtype)
        return center, scale, shift
    else:
        return 0, 0, 0


@triton.jit
def _normalize(x, affine, residual, residual_affine, inside, KIND: tl.constexpr):
    """Zero beyond the border of the map, where a normalization would not leave it."""
    if KIND > 0:
        center, scale, shift = affine
        x = (x - center) * scale + shift
        if KIND > 1:
            center, scale, shift = residual_affine
            residual = (residual - center) * scale + shift
            if KIND == 3:
                residual = _relu(residual)
            x += residual
        # Two halves are multiplied at a time, but selected one by one.
        x = _relu(x) * inside.to(x.dtype)
    return x


@triton.jit
def _relu(x):
    """What is not a number has to reach the logits."""
    return tl.maximum(x, tl.zeros_like(x), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _combine(
    partials, counts, number, ROW: tl.constexpr, BN: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """(mean, variance) of BN channels from those of their parts.

    Distances are taken from the mean of the first part. Its own distance to the mean of all is
    part of the variance, so that no more digits cancel than there are parts.
    """
    origin = tl.load(partials, cache_modifier=".cg")
    size = 0.0
    total, spread = tl.zeros((BN,), tl.float32), tl.zeros((BN,), tl.float32)
    for first in range(0, number, ROWS):
        part = first + tl.arange(0, ROWS)
        exists = part < number
        area = tl.load(counts + part, mask=exists, other=0.0, cache_modifier=".cg")
        source = partials[None, :] + (part * 2 * ROW)[:, None]
        exists = exists[:, None]
        mean = tl.load(source, mask=exists, other=0.0, cache_modifier=".cg")
        deviation = tl.load(source + ROW, mask=exists, other=0.0, cache_modifier=".cg")
        distance = tl.where(exists, mean - origin[None, :], 0.0)
        weighted = distance * area[:, None]
        size += tl.sum(area, 0)
        total += tl.sum(weighted, 0)
        spread += tl.sum(deviation + weighted * distance, 0)
    distance = total / size
    variance = spread / size - distance * distance
    return origin + distance, tl.maximum(variance, 0.0, propagate_nan=tl.PropagateNan.ALL)


@dataclasses.dataclass
class Map:
    """What a layer reads: relu((pixels - center) * scale + shift + residual).

    Attributes:
        pixels (Tensor): half (N, H, W, C), or some channels of such a tensor.
        affine (Tensor or None): float (N, 3, C), center, scale and shift; without any, a layer
            reads the pixels as they are.
        relu (bool): False for a residual that is added as it is.
        residual (Map or None): without one of its own.
    """

    pixels: Tensor
    affine: Tensor | None = None
    relu: bool = True
    residual: "Map | None" = None

    def channels(self, start, stop, **changes):
        pixels, affine = self.pixels[..., start:stop], self.affine[..., start:stop]
        return dataclasses.replace(self, pixels=pixels, affine=affine, **changes)


class LayerLauncher:
    """Runs convolutions one after the other."""

    def __init__(self, device, dtype, weights, arrivals):
        """
        Args:
            device (Device): what is known of the GPU.
            dtype (torch.dtype): of the maps.
            weights (dict[Conv2d, Tensor]): of every 3x3 convolution, (O, 9, C), followed by those
                of the shortcut beside it, where the tap in the centre is all that is read.
            arrivals (iterator[Tensor]): int32 zeros, for each launch as many as it has groups of
                channels and streams.
        """
        self._device, self._dtype = device, dtype
        self._weights, self._arrivals = weights, arrivals

    def __call__(self, conv, value, shortcut=None):
        """
        Args:
            conv (Conv2d): 3x3, with a norm or a bias.
            value (Map): that it reads.
            shortcut (Conv2d or None): 1x1, with a norm, that reads the same.

        Returns:
            Map: sums of the convolution, then of the shortcut; logits of a layer without a norm.
        """
        pixels, residual = value.pixels, value.residual
        num_streams, height, width, channels = pixels.shape
        stride = conv.stride[0]
        size = [(length - 1) // stride + 1 for length in (height, width)]
        norm = getattr(conv, "norm", None)
        out_channels = conv.out_channels
        beside = 0 if shortcut is None else shortcut.out_channels
        row = out_channels + beside
        tile, bn = self._tile(size, num_streams, out_channels)
        tiles_x = triton.cdiv(size[1], tile[1])
        tiles = triton.cdiv(size[0], tile[0]) * tiles_x
        n_tiles = triton.cdiv(row, bn)
        # As many rounds for all of them.
        rounds = triton.cdiv(tiles, _PROGRAMS_PER_SM * self._device.num_sms)
        programs = triton.cdiv(tiles, rounds)
        floats = functools.partial(pixels.new_empty, dtype=torch.float32)
        dtype = torch.float32 if norm is None else self._dtype
        out = pixels.new_empty(num_streams, *size, row, dtype=dtype)
        affine = partials = counts = out
        if norm is not None:
            affine = floats(num_streams, 3, row)
            partials = floats(num_streams, programs, 2, row)
            counts = floats(num_streams, n_tiles, programs)
        norms = [affine] * 4
        if norm is not None:
            other = norm if shortcut is None else shortcut.norm
            norms = [norm.weight, norm.bias, other.weight, other.bias]
        is_raw = value.affine is None
        bk = _reduction(channels) if is_raw else channels
        # Elements of a program's largest tile, which its threads keep in registers.
        large = tile[0] * tile[1] * max(bn, bk * (1 if residual is None else 2)) >= 8192
        num_warps = 8 if large else 4
        # As many statistics at a time as registers hold: the GPU waits for the last program.
        rows = min(1024 * num_warps // bn, triton.next_power_of_2(programs))
        layer_kernel[programs, n_tiles, num_streams](
            pixels, pixels if is_raw else value.affine,
            pixels if residual is None else residual.pixels,
            pixels if residual is None else residual.affine,
            self._weights[conv], out if conv.bias is None else conv.bias, out, *norms,
            partials, counts, next(self._arrivals), affine, height, width, *size, tiles_x, tiles,
            0.0 if norm is None else norm.eps,
            C=channels, X_ROW=pixels.stride(2),
            RESIDUAL_ROW=0 if residual is None else residual.pixels.stride(2),
            OUT=out_channels, SHORTCUT=beside, STRIDE=stride,
            KIND=0 if is_raw else 1 if residual is None else 2 + residual.relu,
            STATISTICS=norm is not None,
            TH=tile[0], TW=tile[1], BN=bn, BK=bk, ROWS=rows,
            num_warps=num_warps, num_stages=3, maxnreg=128, **self._device.launch_options,
        )  # fmt: skip
        return Map(out, None if norm is None else affine)

    def _tile(self, size, num_streams, out_channels):
        """((TH, TW), BN) of a launch."""
        for (height, width), bn in _TILES:
            bn = min(bn, triton.next_power_of_2(max(out_channels, CHANNELS)))
            tiles = triton.cdiv(size[0], height) * triton.cdiv(size[1], width)
            if 2 * num_streams * tiles * triton.cdiv(out_channels, bn) >= 3 * self._device.num_sms:
                break
        return (height, width), bn


def _reduction(channels):
    """The largest power of two that divides the channels, for the reduction in steps."""
    return min(channels & -channels, 64)
