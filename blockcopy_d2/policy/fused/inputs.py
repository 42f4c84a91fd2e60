"""
The start of the layers of the policy network: its input stacked, its weights packed.

Shape shorthand in this module:

    N: streams
    P: side of a block in policy pixels
    h, w: policy resolution
    K: classes of the task network's output
    C, O: channels that a layer reads and writes
"""

from typing import NamedTuple

import triton
import triton.language as tl

from blockcopy_d2.kernels.dependent_launch import begin
from blockcopy_d2.kernels.table import column_numbers, read_int, table_of

from .packing import CHANNELS, packing, padded_channels
from .padded_map import PaddedMap, padded_pixels, place_of

__all__ = ["Inputs"]

# Pixels that a program stacks, and packed weights that one writes at a time.
_PIXELS, _WEIGHTS = 128, 2048
# Programs per multiprocessor that pack weights.
_PACKERS_PER_SM = 4


class WeightRow(NamedTuple):
    """
    A row of the table of weights: where the weights of a convolution start and where they go, in
    elements, and how they are packed, see Packing.
    """

    source: int
    target: int
    rows: int
    kernel: int
    channels: int
    padded_channels: int
    pack: int
    stride: int
    length: int
    stride_o: int
    stride_c: int
    stride_y: int
    stride_x: int


_COLUMNS = column_numbers(WeightRow)


@triton.jit
def inputs_kernel(
    weight_ptr,
    table_ptr,
    packed_ptr,
    packers,
    num_weights,
    frame,  # a pointer, and strides of stream, channel, row and column, like all four maps
    state,
    output,
    grid,
    pixel_scale_ptr,
    out_ptr,
    size,
    K,
    P,
    tiles,
    COLUMN: tl.constexpr,
    BLOCK: tl.constexpr,
    FRAME: tl.constexpr,
    C: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
    PDL: tl.constexpr,
):
    """
    The first programs pack the weights, `packers` programs for each; the others stack the input.
    """
    begin(PDL)
    program = tl.program_id(0)
    if program < packers * num_weights:
        row = table_ptr + program // packers * len(COLUMN)
        _pack(weight_ptr, row, packed_ptr, program % packers, packers, COLUMN, BLOCK)
    else:
        program -= packers * num_weights
        parts: tl.constexpr = C // BC
        stream = (program // tiles // parts).to(tl.int64)
        pixel = program % tiles * BM + tl.arange(0, BM)
        channel = program // tiles % parts * BC + tl.arange(0, BC)[None, :]
        maps = (frame, state, output, grid)
        _stack(maps, pixel_scale_ptr, out_ptr, size, K, P, stream, pixel, channel, FRAME, C)


@triton.jit
def _pack(weight_ptr, row, out_ptr, part, parts, COLUMN: tl.constexpr, BLOCK: tl.constexpr):
    """
    Spreads the weights of one convolution to (O, PACK, 3, row). Those of the i-th pixel of a pack
    start i strides after the start of its window.
    """
    source = weight_ptr + tl.load(row + COLUMN.source)
    target = out_ptr + tl.load(row + COLUMN.target)
    rows = read_int(row + COLUMN.rows)
    kernel = read_int(row + COLUMN.kernel)
    channels = read_int(row + COLUMN.channels)
    padded = read_int(row + COLUMN.padded_channels)
    pack = read_int(row + COLUMN.pack)
    stride = read_int(row + COLUMN.stride)
    length = read_int(row + COLUMN.length)
    stride_o = read_int(row + COLUMN.stride_o)
    stride_c = read_int(row + COLUMN.stride_c)
    stride_y = read_int(row + COLUMN.stride_y)
    stride_x = read_int(row + COLUMN.stride_x)
    border = (3 - kernel) // 2  # a 1x1 convolution is the tap in the centre
    WIDTH: tl.constexpr = 128
    HEIGHT: tl.constexpr = BLOCK // WIDTH
    for first in range(part * HEIGHT, rows, parts * HEIGHT):
        out_row = (first + tl.arange(0, HEIGHT))[:, None]
        y, column = out_row % 3 - border, out_row // 3
        o, shift = column // pack, column % pack * stride + border
        for start in range(0, length, WIDTH):
            e = (start + tl.arange(0, WIDTH))[None, :]
            x, c = e // padded - shift, e % padded
            inside = (out_row < rows) & (e < length)
            exists = inside & (c < channels) & (y >= 0) & (y < kernel) & (x >= 0) & (x < kernel)
            place = o * stride_o + c * stride_c + y * stride_y + x * stride_x
            value = tl.load(source + place, mask=exists, other=0.0)
            place = out_row * length + e
            tl.store(target + place, value.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _read(map_, stream, y, x, channel, mask):
    ptr, stride_n, stride_c, stride_y, stride_x = map_
    source = ptr + stream * stride_n + y * stride_y + x * stride_x + channel * stride_c
    return tl.load(source, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _stack(
    maps,
    pixel_scale_ptr,
    out_ptr,
    size,
    K,
    P,
    stream,
    pixel,
    channel,
    FRAME: tl.constexpr,  # channels of a frame
    C: tl.constexpr,
):
    """Writes channels (1, BC) of pixels (BM,): frame, frame state, output, grid, zeros. Around the
    map, zeros as well."""
    frame, state, output, grid = maps
    h, w = size
    y, x, exists = place_of(pixel, h, w)
    pixel, y, x, exists = pixel[:, None], y[:, None], x[:, None], exists[:, None]
    value = _read(frame, stream, y, x, channel, exists & (channel < FRAME))
    mask = exists & (channel >= FRAME) & (channel < 2 * FRAME)
    value += _read(state, stream, y, x, channel - FRAME, mask)
    factor = tl.load(pixel_scale_ptr + channel % FRAME, mask=channel < 2 * FRAME, other=1.0)
    value = value * factor
    c = channel - 2 * FRAME
    value += _read(output, stream, y, x, c, exists & (c >= 0) & (c < K))
    value += _read(grid, stream, y // P, x // P, 0, exists & (c == K))
    pixels = padded_pixels(h, w)
    target = out_ptr + (stream * pixels + pixel) * C + channel
    tl.store(target, value.to(out_ptr.dtype.element_ty), mask=pixel < pixels)


class Inputs:
    """Stacks the network's inputs and packs the weights of its convolutions, in one launch."""

    def __init__(self, network):
        """
        Args:
            network (PolicyNetwork):
        """
        self._network = network
        self._addresses = self._table = self._size = self._places = None

    def __call__(self, observation, dtype, device):
        """
        Args:
            observation (Observation): observation of N streams.
            dtype (torch.dtype): type of the results.
            device (Device): properties of the GPU.

        Returns:
            tuple[PaddedMap, dict[Conv2d, tuple[Packing, Tensor]]]: the input as stacked by
            :meth:`PolicyNetwork._stack`, with zeros up to a multiple of CHANNELS; and for every 3x3
            convolution its packing and its current weights, (O, pixels, 3, row), followed by those
            of the shortcut beside it.
        """
        weights = [p for p in self._network.parameters() if p.dim() == 4]
        addresses = [weight.data_ptr() for weight in weights]
        if addresses != self._addresses:
            self._table, self._size, self._places = _weight_table(self._network)
            self._addresses = addresses
        base = self._network.head[-1].weight
        packed = base.new_empty(self._size, dtype=dtype)
        maps = [observation.frame, observation.frame_state, observation.output]
        grid, scale = observation.grid, self._network.pixel_scale
        num_streams, num_classes, height, width = observation.output.shape
        channels = padded_channels(2 * scale.numel() + num_classes + 1)
        stacked = PaddedMap.empty(num_streams, (height, width), channels, like=packed)
        packers = triton.cdiv(_PACKERS_PER_SM * device.num_sms, len(weights))
        tiles = triton.cdiv(stacked.num_pixels, _PIXELS)
        programs = packers * len(weights) + tiles * (channels // CHANNELS) * num_streams
        weights = (base, self._table, packed, packers, len(weights))
        maps = [(x, *x.stride()) for x in (*maps, grid)]
        sizes = ((height, width), num_classes, height // grid.shape[2], tiles)
        constants = dict(FRAME=scale.numel(), C=channels, BM=_PIXELS, BC=CHANNELS, BLOCK=_WEIGHTS)
        options = dict(num_warps=4, **device.launch_options)
        inputs_kernel[(programs,)](
            *weights, *maps, scale, stacked.values, *sizes, COLUMN=_COLUMNS, **constants, **options
        )
        places = self._places.items()
        return stacked, {conv: (how, packed[start:]) for conv, (how, start) in places}


def _weight_table(network):
    """
    Returns:
        tuple[Tensor, int, dict[Conv2d, tuple[Packing, int]]]: a WeightRow per layer, the size of
        _pack()'s output, and for every 3x3 convolution its packing and the offset of its weights in
        that output.
    """
    table, places, size = [], {}, 0
    first = network.head[-1].weight
    pairs = [(conv, None) for conv in (network.backbone[0], *network.head)]
    for block in network.backbone[1:]:
        pairs += [(block.conv1, block.shortcut), (block.conv2, None)]
    for conv, shortcut in pairs:
        packed = packing(conv)
        places[conv] = packed, size
        for layer in (conv, shortcut):
            if layer is None:
                continue
            weight = layer.weight
            num_out, channels, kernel, _ = weight.shape
            source = (weight.data_ptr() - first.data_ptr()) // weight.element_size()
            rows = num_out * packed.pixels * 3
            how = packed.channels, packed.pixels, packed.stride, packed.row
            table.append(WeightRow(source, size, rows, kernel, channels, *how, *weight.stride()))
            size += rows * packed.row
    return table_of(table, first.device), size, places
