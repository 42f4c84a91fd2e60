"""
Batch norm by the statistics of the frame itself, the residual, and the rectifier, between two
convolutions of the policy network.

Shape shorthand in this module:

    N: streams
    H, W, C: size and channels of the map
    P: programs of the preceding convolution
"""

import dataclasses

import triton
import triton.language as tl

from blockcopy_d2.kernels.dependent_launch import begin

from .padded_map import PaddedMap, padded_pixels, place_of
from .statistics import combine

__all__ = ["normalize"]

# Pixels and channels of a tile. There is one large program per multiprocessor, since each combines
# the statistics for itself, up to _PARTS of them at a time.
_PIXELS, _CHANNELS, _PARTS, _WARPS = 256, 32, 256, 16


# The size of a map must not make a new variant of the kernel.
@triton.jit(do_not_specialize=["parts", "other_parts", "H", "W"])
def policy_normalization_kernel(
    x_ptr,
    norm,  # partials, counts, weight, bias, eps
    parts,
    other_ptr,
    other_norm,
    other_parts,
    out_ptr,
    H,
    W,
    C: tl.constexpr,
    ROW: tl.constexpr,  # channels that the rows of x have
    RESIDUAL: tl.constexpr,  # none: 0, a padded map: 1, sums with a norm of their own: 2
    OTHER_ROW: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
    PARTS: tl.constexpr,
    PDL: tl.constexpr,
):
    """out = relu(norm(x) + residual), with zeros around it."""
    begin(PDL)
    stream = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    center, scale, shift = _affine(norm, parts, stream, channel, H * W, ROW, BC, PARTS)
    if RESIDUAL == 2:
        other_center, other_scale, other_shift = _affine(
            other_norm, other_parts, stream, channel, H * W, OTHER_ROW, BC, PARTS
        )
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
        # NaN has to reach the logits.
        value = tl.maximum(value, tl.zeros_like(value), propagate_nan=tl.PropagateNan.ALL)
        value = tl.where(inside, value, 0.0).to(out_ptr.dtype.element_ty)
        target = out_ptr + (target * C)[:, None] + channel[None, :]
        tl.store(target, value, mask=(pixel < pixels)[:, None])


@triton.jit
def _affine(
    norm,
    parts,
    stream,
    channel,
    size,
    ROW: tl.constexpr,
    BC: tl.constexpr,
    PARTS: tl.constexpr,
):
    """(center, scale, shift) of some channels, (1, BC) each."""
    partial_ptr, count_ptr, weight_ptr, bias_ptr, eps = norm
    weight, bias = tl.load(weight_ptr + channel), tl.load(bias_ptr + channel)
    partials = partial_ptr + stream * parts * 2 * ROW + channel
    counts = count_ptr + stream * parts
    mean, variance = combine(partials, counts, parts, size.to(tl.float32), ROW, BC, PARTS)
    return mean[None, :], (weight * tl.rsqrt(variance + eps))[None, :], bias[None, :]


def normalize(sums, norm, *, device, residual=None):
    """
    Args:
        sums (Sums): (N, H, W, C).
        norm (BatchNorm2d): norm of C channels.
        device (Device): properties of the GPU.
        residual (PaddedMap or tuple[Sums, BatchNorm2d] or None): residual of as many pixels and
            channels; sums come with a norm of their own.

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
    norms = [
        (part.partials, part.counts, layer.weight, layer.bias, layer.eps)
        for part, layer in ((sums, norm), (other, other_norm))
    ]
    first = (sums.values, norms[0], parts[0])
    second = (other.values, norms[1], parts[1])
    rows = dict(ROW=sums.values.stride(2), OTHER_ROW=other.values.stride(2))
    constants = dict(C=channels, RESIDUAL=kind, BM=_PIXELS, BC=_CHANNELS, **rows)
    constants["PARTS"] = min(_PARTS, triton.next_power_of_2(max(parts)))
    options = dict(num_warps=_WARPS, **device.launch_options)
    policy_normalization_kernel[programs, groups, num_streams](
        *first, *second, out.values, height, width, **constants, **options
    )
    return out
