"""
A convolution of the policy network with the statistics of its output, which the following norm
needs. Every program keeps those of its own pixels.

Shape shorthand in this module:

    N: streams
    H, W, C: size and channels of a layer's input
    OH, OW, O: size and channels of its output, including those of a shortcut beside it
    PACK: neighbouring output pixels that share a window, see packing.py
    P: programs that share the pixels of a stream
"""

import dataclasses

import torch
import triton
import triton.language as tl
from torch import Tensor

from blockcopy_d2.kernels.dependent_launch import begin

from .padded_map import padded_pixels
from .statistics import add_tile

__all__ = ["Sums", "convolve"]

# Packs of output pixels, and output channels, that a program computes at a time, best first.
# Launches that would not fill the GPU use a later one.
_TILES = (((8, 16), 64), ((4, 16), 64), ((4, 8), 64), ((4, 4), 64), ((4, 4), 32))

# Warps of a launch per multiprocessor: as many as run at a time. More would only add statistics.
_WARPS_PER_SM = 16

# Bytes of shared memory that a program may take for steps of the reduction in flight, so that
# enough programs run at a time.
_SHARED_MEMORY = 96 << 10


# The size of a map must not make a new variant of the kernel.
@triton.jit(do_not_specialize=["H", "W", "OH", "OW", "tiles_x", "tiles"])
def policy_convolution_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    partial_ptr,
    count_ptr,
    H,
    W,
    OH,
    OW,
    tiles_x,
    tiles,
    C: tl.constexpr,
    OUT: tl.constexpr,  # channels that it writes
    SHORTCUT: tl.constexpr,  # those that a shortcut beside it writes
    STRIDE: tl.constexpr,
    STATISTICS: tl.constexpr,  # whether a normalization follows; if not, a bias
    MASKED: tl.constexpr,  # whether tiles reach beyond the map, or its channels
    PACK: tl.constexpr,  # as Packing has it, and the next
    WINDOW: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    BO: tl.constexpr,
    BK: tl.constexpr,
    PDL: tl.constexpr,
):
    """out = conv3x3(x), and the mean and the squared deviations of the pixels of each program.

    A program computes some tiles of TH x TW pixels and BO channels. Weights are the first factor of
    the product, so that most of a channel's pixels are in one thread, which adds them up. The
    channels of a shortcut, which is a 1x1 convolution, reduce over the row in the middle, from the
    first centre of the window to the last.
    """
    PACKS: tl.constexpr = TH * TW // PACK
    ROW: tl.constexpr = OUT + SHORTCUT
    STEPS: tl.constexpr = (WINDOW * C + BK - 1) // BK  # of a row of the kernel
    begin(PDL)
    n_tile, stream = tl.program_id(1), tl.program_id(2).to(tl.int64)
    first, last = 0, 3 * STEPS
    if SHORTCUT > 0:
        is_shortcut = n_tile * BO >= OUT
        first = tl.where(is_shortcut, STEPS + C // BK, first)
        last = tl.where(is_shortcut, STEPS + ((WINDOW - 1) * C + BK - 1) // BK, last)

    k = tl.arange(0, BK)
    x_ptr += stream * padded_pixels(H, W) * C
    channel = n_tile * BO + tl.arange(0, BO)
    # Rows of the product: all channels of the first pixel of a pack, then of the next.
    row_channel = n_tile * BO + tl.arange(0, PACK * BO) % BO
    weights = row_channel * PACK + tl.arange(0, PACK * BO) // BO
    weights = weight_ptr + weights[:, None] * (3 * STEPS * BK) + k[None, :]

    pack = tl.arange(0, PACKS)
    pixel = tl.arange(0, TH * TW)
    count = 0.0
    mean, deviation = tl.zeros((BO,), tl.float32), tl.zeros((BO,), tl.float32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        top, left = tile // tiles_x * TH, tile % tiles_x * TW
        # Where each window starts, in the first row of the kernel.
        y, x = top + pack // (TW // PACK), left + pack % (TW // PACK) * PACK
        if MASKED:
            y, x = tl.minimum(y, OH - 1), tl.minimum(x, (OW - 1) // PACK * PACK)
        windows = x_ptr + ((y * (W + 2) + x) * (STRIDE * C))[:, None] + k[None, :]
        acc = tl.zeros((PACK * BO, PACKS), tl.float32)
        for step in range(first, last):
            a = tl.load(windows + (step // STEPS * (W + 2) * C + step % STEPS * BK))
            if ROW % BO == 0:
                b = tl.load(weights + step * BK)
            else:
                exists = (row_channel < ROW)[:, None]
                b = tl.load(weights + step * BK, mask=exists, other=0.0)
            acc = tl.dot(b, a.T, acc, input_precision="tf32")

        # Pixels of a pack are neighbours, both in the map and in the product.
        acc = tl.reshape(acc.T, (TH * TW, BO))
        y, x = top + pixel // TW, left + pixel % TW
        mask = ((y < OH) & (x < OW))[:, None] & (channel < ROW)[None, :]
        target = out_ptr + stream * OH * OW * ROW + ((y * OW + x) * ROW)[:, None] + channel[None, :]
        if STATISTICS:
            out = acc.to(out_ptr.dtype.element_ty)
            area = tl.minimum(OH - top, TH) * tl.minimum(OW - left, TW)
            count, mean, deviation = add_tile(
                count, mean, deviation, out.to(tl.float32), mask, area.to(tl.float32), MASKED
            )
        else:
            out = acc + tl.load(bias_ptr)
        if MASKED:
            tl.store(target, out, mask=mask)
        else:
            tl.store(target, out)

    if STATISTICS:
        program = stream * tl.num_programs(0) + tl.program_id(0)
        own = partial_ptr + program * 2 * ROW + channel
        tl.store(own, mean, mask=channel < ROW)
        tl.store(own + ROW, deviation, mask=channel < ROW)
        tl.store(count_ptr + program, count)  # the same from all groups of channels


@dataclasses.dataclass
class Sums:
    """The results of a convolution: its plain sums, and the statistics that normalize them.

    Attributes:
        values (Tensor): (N, OH, OW, O), half precision, or float32 logits.
        partials (Tensor or None): float (N, P, 2, O), mean and sum of squared deviations of the
            pixels of a program; None of a convolution without a norm.
        counts (Tensor or None): float (N, P), how many pixels these are.
    """

    values: Tensor
    partials: Tensor | None = None
    counts: Tensor | None = None

    def channels(self, start, stop):
        """
        Returns:
            Sums: some channels of these.
        """
        values, partials = self.values[..., start:stop], self.partials[..., start:stop]
        return Sums(values, partials, self.counts)


def convolve(conv, value, packed, weight, *, device, shortcut=None):
    """
    Args:
        conv (Conv2d): 3x3, with a norm or a bias.
        value (PaddedMap): its input.
        packed (Packing): its form as a matrix product.
        weight (Tensor): as :class:`Inputs` packs it, (O, pixels, 3, row).
        device (Device): properties of the GPU.
        shortcut (Conv2d or None): 1x1, with the same input.

    Returns:
        Sums: those of the convolution, then of the shortcut; logits for a layer without a norm.
    """
    num_streams, *_, channels = value.values.shape
    height, width = value.size
    size = [(length - 1) // packed.stride + 1 for length in value.size]
    dtype = value.values.dtype
    out_channels = conv.out_channels
    beside = 0 if shortcut is None else shortcut.out_channels
    row = out_channels + beside
    (tile_height, tile_width), bo = _tile(size, num_streams, out_channels, packed.pixels, device)
    packs, rows = tile_height * tile_width // packed.pixels, packed.pixels * bo
    # Elements of a program's largest tile, which its threads keep in registers.
    num_warps = 8 if packs * rows >= 8192 else 4
    stage = (packs + rows) * packed.step * dtype.itemsize
    most = device.shared_memory // stage
    num_stages = max(1, min(4, most, max(2, _SHARED_MEMORY // stage)))
    tiles_x = triton.cdiv(size[1], tile_width)
    tiles = triton.cdiv(size[0], tile_height) * tiles_x
    # The same number of rounds for all programs.
    rounds = triton.cdiv(tiles, _WARPS_PER_SM // num_warps * device.num_sms)
    programs = triton.cdiv(tiles, rounds)
    has_norm = getattr(conv, "norm", None) is not None
    new = value.values.new_empty
    result = Sums(new(num_streams, *size, row, dtype=dtype if has_norm else torch.float32))
    if has_norm:
        result.partials = new(num_streams, programs, 2, row, dtype=torch.float32)
        result.counts = new(num_streams, programs, dtype=torch.float32)
    unused = result.values
    tensors = [value.values, weight, unused if conv.bias is None else conv.bias, result.values]
    tensors += [result.partials, result.counts] if has_norm else [unused, unused]
    sizes = height, width, *size, tiles_x, tiles
    masked = size[0] % tile_height + size[1] % tile_width + row % bo > 0
    constants = dict(C=channels, OUT=out_channels, SHORTCUT=beside, STRIDE=packed.stride)
    constants |= dict(PACK=packed.pixels, WINDOW=packed.window, STATISTICS=has_norm, MASKED=masked)
    constants |= dict(TH=tile_height, TW=tile_width, BO=bo, BK=packed.step)
    options = dict(num_warps=num_warps, num_stages=num_stages, **device.launch_options)
    grid = (programs, triton.cdiv(row, bo), num_streams)
    policy_convolution_kernel[grid](*tensors, *sizes, **constants, **options)
    return result


def _tile(size, num_streams, out_channels, pack, device):
    """Output pixels (TH, TW) and channels BO of a tile."""
    for (height, width), channels in _TILES:
        width *= pack
        channels = min(channels, 128 // pack, triton.next_power_of_2(max(out_channels, 16)))
        tiles = triton.cdiv(size[0], height) * triton.cdiv(size[1], width)
        n_tiles = triton.cdiv(out_channels, channels)
        if 2 * num_streams * tiles * n_tiles >= 3 * device.num_sms:
            break
    return (height, width), channels
