"""
What stands between two convolutions of the policy network: batch norm by the statistics of the
frame itself, the residual, and the rectifier.

Shape shorthand in this module:

    N: streams
    H, W, C: size and channels of the map
    P: programs of the convolution in front
"""

import dataclasses

import triton
import triton.language as tl

from blockcopy_d2.kernels.dependent_launch import begin

from .padded_map import PaddedMap, padded_pixels, place_of
from .statistics import combine

__all__ = ["normalize"]

# Pixels and channels of a tile. One large program per multiprocessor shares all tiles, since each
# combines the statistics for itself, up to _PARTS of them at a time.
_PIXELS, _CHANNELS, _PARTS, _WARPS = 256, 32, 256, 16


# The size of a map must not make a new variant of the kernel.
@triton.jit(do_not_specialize=["H", "W", "parts", "other_parts"])
def policy_normalization_kernel(
    x_ptr, partial_ptr, count_ptr, weight_ptr, bias_ptr, eps, parts,
    other_ptr, other_partial_ptr, other_count_ptr, other_weight_ptr, other_bias_ptr, other_eps,
    other_parts, out_ptr, H, W,
    C: tl.constexpr, ROW: tl.constexpr,  # channels, and those that the rows of x have
    RESIDUAL: tl.constexpr,  # none: 0, a padded map: 1, sums with a norm of their own: 2
    OTHER_ROW: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr, PARTS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out = relu(norm(x) + residual), with zeros around it."""
    begin(PDL)
    stream = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    center, scale, shift = _affine(
        partial_ptr, count_ptr, weight_ptr, bias_ptr, eps, parts, stream, channel, H * W,
        ROW, BC, PARTS,
    )  # fmt: skip
    if RESIDUAL == 2:
        other_center, other_scale, other_shift = _affine(
            other_partial_ptr, other_count_ptr, other_weight_ptr, other_bias_ptr, other_eps,
            other_parts, stream, channel, H * W, OTHER_ROW, BC, PARTS,
        )  # fmt: skip
    pixels = padded_pixels(H, W)
    for first in range(tl.program_id(0) * BM, pixels, tl.num_programs(0) * BM):
        pixel = first + tl.arange(0, BM)
        y, x, inside = place_of(pixel, H, W)
        inside = inside[:, None]
        source = (stream * H + y) * W + x
        target = stream * pixels + pixel
        value = tl.load(
            x_ptr + (source * ROW)[:, None] + channel[None, :], mask=inside, other=0.0
        ).to(tl.float32)
        if RESIDUAL > 0:
            other = (target if RESIDUAL == 1 else source) * OTHER_ROW
            other = tl.load(
                other_ptr + other[:, None] + channel[None, :], mask=inside, other=0.0
            ).to(tl.float32)
        value = (value - center) * scale + shift
        if RESIDUAL == 1:
            value += other
        elif RESIDUAL == 2:
            value += (other - other_center) * other_scale + other_shift
        # What is not a number has to reach the logits.
        value = tl.maximum(value, tl.zeros_like(value), propagate_nan=tl.PropagateNan.ALL)
        value = tl.where(inside, value, 0.0).to(out_ptr.dtype.element_ty)
        target = out_ptr + (target * C)[:, None] + channel[None, :]
        tl.store(target, value, mask=(pixel < pixels)[:, None])


@triton.jit
def _affine(
    partial_ptr, count_ptr, weight_ptr, bias_ptr, eps, parts, stream, channel, size,
    ROW: tl.constexpr, BC: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """(center, scale, shift) of some channels, (1, BC) each."""
    weight, bias = tl.load(weight_ptr + channel), tl.load(bias_ptr + channel)
    partials = partial_ptr + stream * parts * 2 * ROW + channel
    counts = count_ptr + stream * parts
    mean, variance = combine(partials, counts, parts, size.to(tl.float32), ROW, BC, PARTS)
    return mean[None, :], (weight * tl.rsqrt(variance + eps))[None, :], bias[None, :]


def normalize(sums, norm, *, device, residual=None):
    """
    Args:
        sums (Sums): (N, H, W, C).
        norm (BatchNorm2d): of C channels.
        device (Device): what is known of the GPU.
        residual (PaddedMap or tuple[Sums, BatchNorm2d] or None): of as many pixels and channels;
            sums come with a norm of their own.

    Returns:
        PaddedMap: relu(norm(sums) + residual).
    """
    num_streams, height, width, channels = sums.values.shape
    out = PaddedMap.empty(num_streams, (height, width), channels, like=sums.values)
    kind, other, other_norm = 0, sums, norm
    if isinstance(residual, PaddedMap):
        kind, other = 1, dataclasses.replace(sums, values=residual.values)
    elif residual is not None:
        kind, (other, other_norm) = 2, residual
    groups = channels // _CHANNELS
    tiles = triton.cdiv(out.num_pixels, _PIXELS)
    programs = min(tiles, max(device.num_sms // (groups * num_streams), 1))
    parts = sums.counts.shape[1], other.counts.shape[1]
    policy_normalization_kernel[programs, groups, num_streams](
        sums.values, sums.partials, sums.counts, norm.weight, norm.bias, norm.eps, parts[0],
        other.values, other.partials, other.counts, other_norm.weight, other_norm.bias,
        other_norm.eps, parts[1], out.values, height, width, C=channels,
        ROW=sums.values.stride(2), RESIDUAL=kind, OTHER_ROW=other.values.stride(2),
        BM=_PIXELS, BC=_CHANNELS, PARTS=min(_PARTS, triton.next_power_of_2(max(parts))),
        num_warps=_WARPS, **device.launch_options,
    )  # fmt: skip
    return out
