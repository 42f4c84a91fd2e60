"""The rest of a residual block as one launch: 3x3 convolution, 1x1 convolution with the residual,
and the 1x1 convolution that opens the next block.

The second and third work pixel by pixel, so a program keeps its pixels: the middle channels never
leave it, and the block's output is written but not read again by the next 1x1. Against three
launches this saves, per pixel, a write and a read of the middle channels and a read of the output;
at few active blocks, it saves the start of two launches.

Shape shorthand: C channels, H x W pixels of a map, T x T pixels of a block, KH x KW taps.
"""

import dataclasses

import torch
import triton
import triton.language as tl

from blockcopy_d2.kernels.dependent_launch import begin_with, count_blocks
from blockcopy_d2.kernels.tf32 import round_tf32

from .geometry import BlockList, locate


@triton.jit
def bottleneck_kernel(
    x_ptr, middle_weight_ptr, middle_bias_ptr, weight_ptr, bias_ptr, residual_ptr, out_ptr,
    next_weight_ptr, next_bias_ptr, next_ptr, blocks_ptr, count_ptr,
    T, GH, GW, H, W, OH, OW, x_row, residual_row, out_row, next_row, pad_y, pad_x,
    C_IN: tl.constexpr, MIDDLE: tl.constexpr, C_OUT: tl.constexpr, NEXT: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, STRIDE: tl.constexpr,
    DILATION_Y: tl.constexpr, DILATION_X: tl.constexpr,
    RESIDUAL: tl.constexpr, MIDDLE_RELU: tl.constexpr, RELU: tl.constexpr,
    NEXT_RELU: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    SETTLED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """BM active pixels: middle = relu(conv(x)), out = relu(conv1x1(middle) + residual),
    next = relu(conv1x1(out)), out and next BN output channels at a time."""
    STEPS_PER_TAP: tl.constexpr = C_IN // BK
    STEPS: tl.constexpr = KH * KW * STEPS_PER_TAP
    num_pixels = count_blocks(count_ptr, SETTLED, PDL) * T * T
    tiles = tl.cdiv(num_pixels, BM)
    begin_with(tl.program_id(0) < tiles, SETTLED, PDL)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        first = tile * BM
        stream, oy, ox, valid = locate(first + tl.arange(0, BM), blocks_ptr, num_pixels, T, GH, GW)
        valid = valid & (oy < OH) & (ox < OW)
        iy0 = oy * STRIDE - pad_y
        ix0 = ox * STRIDE - pad_x
        k = tl.arange(0, BK)
        middle = tl.arange(0, MIDDLE)
        dtype: tl.constexpr = out_ptr.dtype.element_ty

        acc = tl.zeros((BM, MIDDLE), tl.float32)
        middle_weight = middle_weight_ptr + middle[:, None] * (STEPS * BK) + k[None, :]
        for step in range(STEPS):
            tap = step // STEPS_PER_TAP
            iy = iy0 + tap // KW * DILATION_Y
            ix = ix0 + tap % KW * DILATION_X
            inside = valid & (iy >= 0) & (iy < H) & (ix >= 0) & (ix < W)
            pixel = (stream * H + iy) * W + ix
            if WIDE:
                pixel = pixel.to(tl.int64)
            channel = (step % STEPS_PER_TAP) * BK + k
            source = x_ptr + (pixel * x_row)[:, None] + channel[None, :]
            a = tl.load(source, mask=inside[:, None], other=0.0)
            b = tl.load(middle_weight + step * BK)
            acc = tl.dot(a, b.T, acc, input_precision=PRECISION)
        acc += tl.load(middle_bias_ptr + middle)[None, :]
        if MIDDLE_RELU:
            acc = tl.where(acc < 0, 0.0, acc)
        hidden = _stored(acc, dtype, PRECISION)

        pixel = (stream * OH + oy) * OW + ox
        if WIDE:
            pixel = pixel.to(tl.int64)
        if NEXT > 0:
            following = tl.arange(0, NEXT)
            next_acc = tl.zeros((BM, NEXT), tl.float32)
        for start in range(0, C_OUT, BN):
            channel = start + tl.arange(0, BN)
            weight = tl.load(weight_ptr + channel[:, None] * MIDDLE + middle[None, :])
            y = tl.dot(hidden, weight.T, input_precision=PRECISION)
            y += tl.load(bias_ptr + channel)[None, :]
            if RESIDUAL:
                residual = residual_ptr + (pixel * residual_row)[:, None] + channel[None, :]
                y += tl.load(residual, mask=valid[:, None], other=0.0).to(tl.float32)
            if RELU:
                y = tl.where(y < 0, 0.0, y)
            out = _stored(y, dtype, PRECISION)
            target = out_ptr + (pixel * out_row)[:, None] + channel[None, :]
            tl.store(target, out, mask=valid[:, None])
            if NEXT > 0:
                weight = tl.load(next_weight_ptr + following[:, None] * C_OUT + channel[None, :])
                next_acc = tl.dot(out, weight.T, next_acc, input_precision=PRECISION)
        if NEXT > 0:
            next_acc += tl.load(next_bias_ptr + following)[None, :]
            if NEXT_RELU:
                next_acc = tl.where(next_acc < 0, 0.0, next_acc)
            target = next_ptr + (pixel * next_row)[:, None] + following[None, :]
            tl.store(target, _stored(next_acc, dtype, PRECISION), mask=valid[:, None])


@triton.jit
def _stored(y, dtype: tl.constexpr, PRECISION: tl.constexpr):
    if PRECISION == "tf32" and dtype == tl.float32:
        y = round_tf32(y)
    return y.to(dtype)


@dataclasses.dataclass(frozen=True)
class BottleneckConfig:
    """How a launch divides its work.

    Attributes:
        bm: pixels of a program.
        bn: output channels at a time.
        bk: of the reduction of the first convolution at a time.
        num_warps, num_stages: of a program.
        per_sm: programs per multiprocessor that share all tiles.
    """

    bm: int
    bn: int
    bk: int
    num_warps: int = 8
    num_stages: int = 3
    per_sm: int = 4


@dataclasses.dataclass(frozen=True)
class BottleneckShape:
    """
    Attributes:
        in_channels, middle, out_channels: of the two convolutions; powers of two, but the last a
            multiple of 16.
        next_channels: of the opening convolution of the next block, 0 if it is not part.
        kernel, padding, dilation (y, x), stride: of the first convolution.
        middle_relu, relu, next_relu: whether each of the three ends in one.
        residual: whether one is added.
    """

    in_channels: int
    middle: int
    out_channels: int
    next_channels: int
    kernel: tuple
    stride: int
    padding: tuple
    dilation: tuple
    middle_relu: bool
    relu: bool
    next_relu: bool
    residual: bool


@dataclasses.dataclass
class BottleneckWeights:
    """K-major weights and float32 biases of the three convolutions, the third None if not part."""

    middle: torch.Tensor
    middle_bias: torch.Tensor
    out: torch.Tensor
    out_bias: torch.Tensor
    next: torch.Tensor | None = None
    next_bias: torch.Tensor | None = None


def widest_bottleneck(device, dtype):
    """Middle channels up to which the rest of a residual block is one launch: those that a program
    can keep, as long as that is faster."""
    if device.bulk_copies:
        return 64 if dtype.itemsize == 2 else 0
    return 128 if device.shared_memory >= 160 << 10 else 0


def pack_bottleneck(*convolutions):
    """BottleneckWeights of two or three (weight, bias) as of conv2d; biases may be None."""
    packed = []
    for weight, bias in convolutions:
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        packed += [weight.permute(0, 2, 3, 1).flatten(1).contiguous(), bias.float()]
    return BottleneckWeights(*packed)


class BottleneckLaunch:
    """The launch bound to its operands; calling it with a BlockList runs the active blocks."""

    kernel = bottleneck_kernel

    def __init__(
        self, shape, config, *, x, weights, out, tiling, residual=None, following=None,
        precision="tf32", device,
    ):  # fmt: skip
        """
        Args:
            shape: BottleneckShape.
            config: BottleneckConfig.
            x, out, residual, following: state.FeatureMaps; `following` takes the output of the
                third convolution.
            weights: BottleneckWeights.
            tiling: Tiling of the output.
            precision: of float32 products, "tf32" or "ieee".
            device: Device.
        """
        self.shape, self.config = shape, config
        self.operands = dict(x=x, weights=weights, out=out, tiling=tiling, residual=residual,
                             following=following)  # fmt: skip
        self.grid = (device.programs(tiling.num_pixels, config.bm, config.per_sm),)
        residual = out if residual is None else residual
        following = out if following is None else following
        next_weight = weights.out if weights.next is None else weights.next
        next_bias = weights.out_bias if weights.next_bias is None else weights.next_bias
        self.tensors = (
            x.rows, weights.middle, weights.middle_bias, weights.out, weights.out_bias,
            residual.rows, out.rows, next_weight, next_bias, following.rows,
        )  # fmt: skip
        self.sizes = (
            tiling.tile, tiling.rows, tiling.columns, *x.size, *out.size, x.rows.stride(0),
            residual.rows.stride(0), out.rows.stride(0), following.rows.stride(0), *shape.padding,
        )  # fmt: skip
        self.constants = dict(
            C_IN=shape.in_channels, MIDDLE=shape.middle, C_OUT=shape.out_channels,
            NEXT=shape.next_channels, KH=shape.kernel[0], KW=shape.kernel[1], STRIDE=shape.stride,
            DILATION_Y=shape.dilation[0], DILATION_X=shape.dilation[1], RESIDUAL=shape.residual,
            MIDDLE_RELU=shape.middle_relu, RELU=shape.relu, NEXT_RELU=shape.next_relu,
            PRECISION=precision, WIDE=any(map_.wide for map_ in (x, out, residual, following)),
            BM=config.bm, BN=config.bn, BK=config.bk, num_warps=config.num_warps,
            num_stages=config.num_stages, **device.launch_options,
        )  # fmt: skip

    def __call__(self, blocks):
        self.kernel[self.grid](*self._arguments(blocks), **self.constants, SETTLED=blocks.settled)

    def signature(self):
        """Positional and keyword arguments with dtypes for tensors, as Triton's warmup takes."""
        integer = torch.empty(0, dtype=torch.int32)
        arguments = self._arguments(BlockList(integer, integer))
        types = [x.dtype if isinstance(x, torch.Tensor) else x for x in arguments]
        return types, {**self.constants, "SETTLED": True}

    def _arguments(self, blocks):
        return (*self.tensors, blocks.blocks, blocks.count, *self.sizes)


def bottleneck_reference(x, shape, convolutions, residual=None):
    """(out, next or None) on whole maps, (N, C, H, W), in plain PyTorch."""
    (weight, bias), *others = convolutions
    conv2d = torch.nn.functional.conv2d
    y = conv2d(x, weight, bias, shape.stride, shape.padding, shape.dilation)
    y = conv2d(y.relu() if shape.middle_relu else y, *others[0])
    y = y if residual is None else y + residual
    y = y.relu() if shape.relu else y
    if not shape.next_channels:
        return y, None
    following = conv2d(y, *others[1])
    return y, following.relu() if shape.next_relu else following
