"""
One layer of the policy network: a convolution, and the batch norm behind it.

The launch normalizes what it reads, adds the residual and rectifies, and writes plain sums. On the
way each program keeps the mean and the squared deviations of what it writes; the last one to finish
combines them to the center, scale and shift that normalize these sums where the next layer reads
them: of each stream by its own, as the network's batch norms do.

Shape shorthand in this module:

    N: streams
    H, W, C: size and channels of what a layer reads
    OH, OW, O: of what it writes, with the channels of a shortcut beside it
    PACK: neighbouring output pixels that share a window, see packing.py
"""

import dataclasses
import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from blockcopy_d2.sparse.triton_ops.geometry import begin

from .statistics import add_tile, combine

__all__ = ["LayerLauncher", "Map"]

# Packs of output pixels, and output channels, that a program computes at a time, the best product
# first; launches that these do not fill the GPU with take a later one.
_TILES = (((8, 16), 64), ((4, 16), 64), ((4, 8), 64), ((4, 4), 64), ((4, 4), 32))

# Warps of a launch per multiprocessor: as many as run at a time. More only make more statistics.
_WARPS_PER_SM = 16

# Bytes of shared memory that a program may take for steps of the reduction that are on their way:
# as many programs run at a time.
_SHARED_MEMORY = 96 << 10


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
    MASKED: tl.constexpr,  # whether tiles reach beyond the map, or its channels
    PACK: tl.constexpr, WINDOW: tl.constexpr,  # as Packing has them
    TH: tl.constexpr, TW: tl.constexpr, BO: tl.constexpr, BK: tl.constexpr,
    PARTS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out = conv3x3(relu(normalized x + residual)), and what normalizes out where it is read.

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
    tl.static_assert(KIND == 0 or BK % C == 0)  # channels are the same in every step
    affine = _affine(affine_ptr, stream, k % C, X_ROW, x_ptr.dtype.element_ty, KIND > 0)
    residual_affine = _affine(
        residual_affine_ptr, stream, k % C, RESIDUAL_ROW, x_ptr.dtype.element_ty, KIND > 1
    )
    x_base = x_ptr + stream * H * W * X_ROW
    residual_base = residual_ptr + stream * H * W * RESIDUAL_ROW
    channel = n_tile * BO + tl.arange(0, BO)
    # Of the product: each channel of the first pixel of a pack, then of the next.
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
        y = (top + pack // (TW // PACK)) * STRIDE - 1
        x = (left + pack % (TW // PACK) * PACK) * STRIDE - 1
        acc = tl.zeros((PACK * BO, PACKS), tl.float32)
        for step in range(first, last):
            row, start = step // STEPS, step % STEPS * BK
            # What is negative is large without a sign.
            window_x = (start + k) // C
            inside = ((y + row).to(tl.uint32) < H.to(tl.uint32))[:, None]
            inside &= (x[:, None] + window_x[None, :]).to(tl.uint32) < W.to(tl.uint32)
            if WINDOW * C % BK != 0:
                inside &= (window_x < WINDOW)[None, :]
            a = _read(x_base, y, x, row, start, k, inside, W, C, X_ROW, BK)
            other = a
            if KIND > 1:
                other = _read(residual_base, y, x, row, start, k, inside, W, C, RESIDUAL_ROW, BK)
            a = _normalize(a, affine, other, residual_affine, inside, KIND)
            if ROW % BO == 0:
                b = tl.load(weights + step * BK)
            else:
                exists = (row_channel < ROW)[:, None]
                b = tl.load(weights + step * BK, mask=exists, other=0.0)
            acc = tl.dot(b, a.T, acc, input_precision="tf32")

        # Pixels of a pack are neighbours, in the map as in the product.
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
            # Read early: nothing else is left to do while memory answers.
            if n_tile * BO < OUT:
                factor = tl.load(norm_weight_ptr + channel)
                bias = tl.load(norm_bias_ptr + channel)
            else:
                factor = tl.load(shortcut_weight_ptr + channel - OUT)
                bias = tl.load(shortcut_bias_ptr + channel - OUT)
            size = (OH * OW).to(tl.float32)
            mean, variance = combine(partials, counts, tl.num_programs(0), size, ROW, BO, PARTS)
            factor *= tl.rsqrt(variance + eps)
            out_affine = out_affine_ptr + stream * 3 * ROW + channel
            # In half precision, distances from the mean are more exact than products with it.
            rounded = mean.to(out_ptr.dtype.element_ty).to(tl.float32)
            tl.store(out_affine, rounded)
            tl.store(out_affine + ROW, factor)
            tl.store(out_affine + 2 * ROW, bias - (mean - rounded) * factor)


@triton.jit
def _read(
    base, y, x, row, start, k, inside, W,
    C: tl.constexpr, ROW: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Values `start + k` of the windows that start at (y + row, x), in a map of ROW channels.

    Of the address little changes from step to step, so little has to be computed anew.
    """
    tl.static_assert(ROW == C or C % BK == 0 or BK % C == 0)
    # The compiler does not see through the division.
    base += row * W * ROW + tl.multiple_of(start // C * ROW + start % C, 16)
    place = ((y * W + x) * ROW)[:, None] + (k // C * ROW + k % C)[None, :]
    return tl.load(base + place, mask=inside, other=0.0)


@triton.jit
def _affine(affine_ptr, stream, c, ROW: tl.constexpr, dtype: tl.constexpr, EXISTS: tl.constexpr):
    """(center, scale, shift) of the channels c."""
    if EXISTS:
        affine = affine_ptr + stream * 3 * ROW + c[None, :]
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
            weights (dict[Conv2d, tuple[Packing, Tensor]]): of every 3x3 convolution, as
                :class:`Inputs` packs them.
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
        packed, weight = self._weights[conv]
        (tile_height, tile_width), bo = self._tile(size, num_streams, out_channels, packed.pixels)
        packs, rows = tile_height * tile_width // packed.pixels, packed.pixels * bo
        maps = 1 if residual is None else 2
        # Elements of a program's largest tile, which its threads keep in registers.
        num_warps = 8 if packs * max(rows, packed.step * maps) >= 8192 else 4
        stage = (packs * maps + rows) * packed.step * self._dtype.itemsize
        most = self._device.shared_memory // stage
        num_stages = max(1, min(4, most, max(2, _SHARED_MEMORY // stage)))
        tiles_x = triton.cdiv(size[1], tile_width)
        tiles = triton.cdiv(size[0], tile_height) * tiles_x
        n_tiles = triton.cdiv(row, bo)
        # As many rounds for all of them.
        rounds = triton.cdiv(tiles, _WARPS_PER_SM // num_warps * self._device.num_sms)
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
        # As many statistics at a time as registers hold: the GPU waits for the last program.
        parts = min(512 * num_warps // bo, triton.next_power_of_2(programs))
        layer_kernel[programs, n_tiles, num_streams](
            pixels, pixels if is_raw else value.affine,
            pixels if residual is None else residual.pixels,
            pixels if residual is None else residual.affine,
            weight, out if conv.bias is None else conv.bias, out, *norms,
            partials, counts, next(self._arrivals), affine, height, width, *size, tiles_x, tiles,
            0.0 if norm is None else norm.eps,
            C=channels, X_ROW=pixels.stride(2),
            RESIDUAL_ROW=0 if residual is None else residual.pixels.stride(2),
            OUT=out_channels, SHORTCUT=beside, STRIDE=stride,
            KIND=0 if is_raw else 1 if residual is None else 2 + residual.relu,
            STATISTICS=norm is not None,
            MASKED=size[0] % tile_height + size[1] % tile_width + row % bo > 0,
            PACK=packed.pixels, WINDOW=packed.window,
            TH=tile_height, TW=tile_width, BO=bo, BK=packed.step, PARTS=parts,
            num_warps=num_warps, num_stages=num_stages, maxnreg=128, **self._device.launch_options,
        )  # fmt: skip
        return Map(out, None if norm is None else affine)

    def _tile(self, size, num_streams, out_channels, pack):
        """Output pixels (TH, TW) and channels BO of a tile."""
        for (height, width), channels in _TILES:
            width *= pack
            channels = min(channels, 128 // pack, triton.next_power_of_2(max(out_channels, 16)))
            tiles = triton.cdiv(size[0], height) * triton.cdiv(size[1], width)
            n_tiles = triton.cdiv(out_channels, channels)
            if 2 * num_streams * tiles * n_tiles >= 3 * self._device.num_sms:
                break
        return (height, width), channels
