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

from .block_launch import BlockLaunch
from .geometry import locate, pixel_number


@triton.jit
def bottleneck_kernel(
    blocks_ptr,
    count_ptr,
    tiling,
    x_map,
    out_map,
    residual,  # and elements from one of its pixels to the next
    following,  # the same of the map that the third convolution writes
    weights,  # weight and bias of the three convolutions
    SHAPE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SETTLED: tl.constexpr,
    PDL: tl.constexpr,
):
    """BM active pixels: middle = relu(conv(x)), out = relu(conv1x1(middle) + residual),
    next = relu(conv1x1(out)), out and next BN output channels at a time."""
    C_OUT: tl.constexpr = SHAPE.out_channels
    MIDDLE: tl.constexpr = SHAPE.middle
    NEXT: tl.constexpr = SHAPE.next_channels
    T = tiling[0]
    out_ptr, OH, OW, out_row = out_map
    residual_ptr, residual_row = residual
    next_ptr, next_row = following
    weight_ptr, bias_ptr = weights[1]
    next_weight_ptr, next_bias_ptr = weights[2]
    num_pixels = count_blocks(count_ptr, SETTLED, PDL) * T * T
    tiles = tl.cdiv(num_pixels, BM)
    begin_with(tl.program_id(0) < tiles, SETTLED, PDL)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        first = tile * BM
        stream, oy, ox, valid = locate(first + tl.arange(0, BM), blocks_ptr, num_pixels, tiling)
        valid = valid & (oy < OH) & (ox < OW)
        dtype: tl.constexpr = out_ptr.dtype.element_ty
        place = (stream, oy, ox, valid)
        acc = _convolve(place, x_map, weights[0], SHAPE, PRECISION, WIDE, BM, BK)
        hidden = _stored(acc, dtype, PRECISION)
        middle = tl.arange(0, MIDDLE)

        pixel = pixel_number(stream, oy, ox, OH, OW, WIDE)
        if NEXT > 0:
            next_channel = tl.arange(0, NEXT)
            next_acc = tl.zeros((BM, NEXT), tl.float32)
        for start in range(0, C_OUT, BN):
            channel = start + tl.arange(0, BN)
            weight = tl.load(weight_ptr + channel[:, None] * MIDDLE + middle[None, :])
            y = tl.dot(hidden, weight.T, input_precision=PRECISION)
            y += tl.load(bias_ptr + channel)[None, :]
            if SHAPE.residual:
                source = residual_ptr + (pixel * residual_row)[:, None] + channel[None, :]
                y += tl.load(source, mask=valid[:, None], other=0.0).to(tl.float32)
            if SHAPE.relu:
                y = tl.where(y < 0, 0.0, y)
            out = _stored(y, dtype, PRECISION)
            target = out_ptr + (pixel * out_row)[:, None] + channel[None, :]
            tl.store(target, out, mask=valid[:, None])
            if NEXT > 0:
                weight = tl.load(next_weight_ptr + next_channel[:, None] * C_OUT + channel[None, :])
                next_acc = tl.dot(out, weight.T, next_acc, input_precision=PRECISION)
        if NEXT > 0:
            next_acc += tl.load(next_bias_ptr + next_channel)[None, :]
            if SHAPE.next_relu:
                next_acc = tl.where(next_acc < 0, 0.0, next_acc)
            target = next_ptr + (pixel * next_row)[:, None] + next_channel[None, :]
            tl.store(target, _stored(next_acc, dtype, PRECISION), mask=valid[:, None])


@triton.jit
def _convolve(
    place,
    x_map,
    weights,
    SHAPE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """float32 (BM, MIDDLE): the first convolution, of output pixels (stream, oy, ox, valid)."""
    MIDDLE: tl.constexpr = SHAPE.middle
    KW: tl.constexpr = SHAPE.kernel[1]
    STEPS_PER_TAP: tl.constexpr = SHAPE.in_channels // BK
    STEPS: tl.constexpr = SHAPE.kernel[0] * KW * STEPS_PER_TAP
    stream, oy, ox, valid = place
    x_ptr, H, W, x_row = x_map
    weight_ptr, bias_ptr = weights
    iy0 = oy * SHAPE.stride - SHAPE.padding[0]
    ix0 = ox * SHAPE.stride - SHAPE.padding[1]
    k = tl.arange(0, BK)
    middle = tl.arange(0, MIDDLE)
    acc = tl.zeros((BM, MIDDLE), tl.float32)
    weight = weight_ptr + middle[:, None] * (STEPS * BK) + k[None, :]
    for step in range(STEPS):
        tap = step // STEPS_PER_TAP
        iy = iy0 + tap // KW * SHAPE.dilation[0]
        ix = ix0 + tap % KW * SHAPE.dilation[1]
        inside = valid & (iy >= 0) & (iy < H) & (ix >= 0) & (ix < W)
        pixel = pixel_number(stream, iy, ix, H, W, WIDE)
        channel = (step % STEPS_PER_TAP) * BK + k
        source = x_ptr + (pixel * x_row)[:, None] + channel[None, :]
        a = tl.load(source, mask=inside[:, None], other=0.0)
        b = tl.load(weight + step * BK)
        acc = tl.dot(a, b.T, acc, input_precision=PRECISION)
    acc += tl.load(bias_ptr + middle)[None, :]
    if SHAPE.middle_relu:
        acc = tl.where(acc < 0, 0.0, acc)
    return acc


@triton.jit
def _stored(y, dtype: tl.constexpr, PRECISION: tl.constexpr):
    if PRECISION == "tf32" and dtype == tl.float32:
        y = round_tf32(y)
    return y.to(dtype)


@dataclasses.dataclass(frozen=True)
class BottleneckConfig:
    """Division of the work of a launch.

    Attributes:
        bm: pixels of a program.
        bn: output channels at a time; divides those of the shape.
        bk: channels of the reduction of the first convolution at a time; divides its inputs.
        num_warps, num_stages: warps and pipeline stages of a program.
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
        in_channels, middle, out_channels: channels before, between and after the two convolutions:
            a multiple of 16, a power of two from 16 on, and a multiple of 64.
        next_channels: channels of the opening convolution of the next block, a power of two from 16
            on; 0 if it is not part.
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

    @property
    def operand(self):
        """Arguments of the kernel. Those of a missing third convolution may be anything."""
        out = self.out, self.out_bias
        following = out if self.next is None else (self.next, self.next_bias)
        return (self.middle, self.middle_bias), out, following


def widest_bottleneck(device, dtype):
    """
    Returns the most middle channels for which the rest of a residual block is one launch: as many
    as a program can keep, where that is faster.
    """
    if device.bulk_copies:
        return 64 if dtype.itemsize == 2 else 0
    return 128 if device.shared_memory >= 160 << 10 else 0


def pack_bottleneck(*convolutions):
    """BottleneckWeights of two or three (weight, bias) like conv2d's; biases may be None."""
    packed = []
    for weight, bias in convolutions:
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        packed += [weight.permute(0, 2, 3, 1).flatten(1).contiguous(), bias.float()]
    return BottleneckWeights(*packed)


class BottleneckLaunch(BlockLaunch):
    """The launch bound to its operands; calling it with a BlockList runs the active blocks."""

    def __init__(
        self,
        shape,
        config,
        *,
        x,
        weights,
        out,
        tiling,
        residual=None,
        following=None,
        precision="tf32",
        device,
    ):
        """
        Args:
            shape: BottleneckShape.
            config: BottleneckConfig.
            x, out, residual, following: state.FeatureMaps; `following` takes the output of the
                third convolution.
            weights: BottleneckWeights.
            tiling: Tiling of the output.
            precision: precision of float32 products, "tf32" or "ieee".
            device: Device.
        """
        self.shape, self.config = shape, config
        maps = dict(x=x, out=out, residual=residual, following=following)
        self.operands = dict(maps, weights=weights, tiling=tiling)
        others = [(out if map_ is None else map_).rows for map_ in (residual, following)]
        tile = dict(BM=config.bm, BN=config.bn, BK=config.bk)
        launch = dict(num_warps=config.num_warps, num_stages=config.num_stages)
        wide = any(map_.wide for map_ in maps.values() if map_ is not None)
        rows = [(rows, rows.stride(0)) for rows in others]
        super().__init__(
            bottleneck_kernel,
            (device.programs(tiling.num_pixels, config.bm, config.per_sm),),
            (tiling.sides, x.operand, out.operand, *rows, weights.operand),
            dict(SHAPE=shape, PRECISION=precision, WIDE=wide, **tile, **launch)
            | device.launch_options,
        )


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
