"""
What the layers of the policy network start from: its input stacked, its weights packed.

Shape shorthand in this module:

    N: streams
    P: side of a block in policy pixels
    h, w: policy resolution
    K: classes of the task network's output
    C, O: channels that a layer reads and writes
"""

import torch
import triton
import triton.language as tl

from blockcopy_d2.kernels.dependent_launch import begin

from .packing import CHANNELS, packing, padded_channels
from .padded_map import PaddedMap, padded_pixels, place_of

__all__ = ["Inputs"]

# Columns of the table of weights, see _pack().
_FIELDS = 13


@triton.jit
def inputs_kernel(
    weight_ptr, table_ptr, packed_ptr, packers, num_weights,
    frame_ptr, state_ptr, output_ptr, grid_ptr, pixel_scale_ptr, out_ptr, h, w, K, P, tiles,
    frame_n, frame_c, frame_y, frame_x, state_n, state_c, state_y, state_x,
    output_n, output_c, output_y, output_x, grid_n, grid_y, grid_x,
    FIELDS: tl.constexpr, BLOCK: tl.constexpr, FRAME: tl.constexpr, C: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The first programs pack the weights, `packers` of them each, the others stack the input."""
    begin(PDL)
    program = tl.program_id(0)
    if program < packers * num_weights:
        _pack(
            weight_ptr, table_ptr, packed_ptr, program % packers, packers, program // packers,
            FIELDS, BLOCK,
        )  # fmt: skip
    else:
        program -= packers * num_weights
        parts: tl.constexpr = C // BC
        _stack(
            frame_ptr, state_ptr, output_ptr, grid_ptr, pixel_scale_ptr, out_ptr, h, w, K, P,
            frame_n, frame_c, frame_y, frame_x, state_n, state_c, state_y, state_x,
            output_n, output_c, output_y, output_x, grid_n, grid_y, grid_x,
            program % tiles, program // tiles % parts, (program // tiles // parts).to(tl.int64),
            FRAME, C, BM, BC,
        )  # fmt: skip


@triton.jit
def _pack(
    weight_ptr, table_ptr, out_ptr, part, parts, weight,
    FIELDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Spreads weights of one convolution to (O, PACK, 3, row): those of the i-th pixel of a pack
    start i strides after the start of its window."""
    fields = table_ptr + weight * FIELDS
    source, target = weight_ptr + tl.load(fields), out_ptr + tl.load(fields + 1)
    rows, kernel = tl.load(fields + 2).to(tl.int32), tl.load(fields + 3).to(tl.int32)
    channels, padded = tl.load(fields + 4).to(tl.int32), tl.load(fields + 5).to(tl.int32)
    pack, stride = tl.load(fields + 6).to(tl.int32), tl.load(fields + 7).to(tl.int32)
    length = tl.load(fields + 8).to(tl.int32)
    stride_o, stride_c = tl.load(fields + 9).to(tl.int32), tl.load(fields + 10).to(tl.int32)
    stride_y, stride_x = tl.load(fields + 11).to(tl.int32), tl.load(fields + 12).to(tl.int32)
    border = (3 - kernel) // 2  # a 1x1 convolution is the tap in the centre
    WIDTH: tl.constexpr = 128
    HEIGHT: tl.constexpr = BLOCK // WIDTH
    for first in range(part * HEIGHT, rows, parts * HEIGHT):
        row = (first + tl.arange(0, HEIGHT))[:, None]
        y, column = row % 3 - border, row // 3
        o, shift = column // pack, column % pack * stride + border
        for start in range(0, length, WIDTH):
            e = (start + tl.arange(0, WIDTH))[None, :]
            x, c = e // padded - shift, e % padded
            inside = (row < rows) & (e < length)
            exists = inside & (c < channels) & (y >= 0) & (y < kernel) & (x >= 0) & (x < kernel)
            place = o * stride_o + c * stride_c + y * stride_y + x * stride_x
            value = tl.load(source + place, mask=exists, other=0.0)
            place = row * length + e
            tl.store(target + place, value.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _stack(
    frame_ptr, state_ptr, output_ptr, grid_ptr, pixel_scale_ptr, out_ptr, h, w, K, P,
    frame_n, frame_c, frame_y, frame_x, state_n, state_c, state_y, state_x,
    output_n, output_c, output_y, output_x, grid_n, grid_y, grid_x, tile, part, stream,
    FRAME: tl.constexpr,  # channels of a frame
    C: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Writes BC channels of BM pixels: frame, frame state, output, grid, zeros. Around the map,
    zeros as well."""
    pixel = tile * BM + tl.arange(0, BM)
    y, x, exists = place_of(pixel, h, w)
    pixel, y, x, exists = pixel[:, None], y[:, None], x[:, None], exists[:, None]
    channel = part * BC + tl.arange(0, BC)[None, :]

    mask = exists & (channel < FRAME)
    source = frame_ptr + stream * frame_n + y * frame_y + x * frame_x + channel * frame_c
    value = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    mask = exists & (channel >= FRAME) & (channel < 2 * FRAME)
    source = state_ptr + stream * state_n + y * state_y + x * state_x + (channel - FRAME) * state_c
    value += tl.load(source, mask=mask, other=0.0).to(tl.float32)
    factor = tl.load(pixel_scale_ptr + channel % FRAME, mask=channel < 2 * FRAME, other=1.0)
    value = value * factor
    c = channel - 2 * FRAME
    mask = exists & (c >= 0) & (c < K)
    source = output_ptr + stream * output_n + y * output_y + x * output_x + c * output_c
    value += tl.load(source, mask=mask, other=0.0).to(tl.float32)
    source = grid_ptr + stream * grid_n + y // P * grid_y + x // P * grid_x
    value += tl.load(source, mask=exists & (c == K), other=0.0).to(tl.float32)
    pixels = padded_pixels(h, w)
    target = out_ptr + (stream * pixels + pixel) * C + channel
    tl.store(target, value.to(out_ptr.dtype.element_ty), mask=pixel < pixels)


class Inputs:
    """Stacks what the network sees and packs the weights of its convolutions, in one launch."""

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
            observation (Observation): of N streams.
            dtype (torch.dtype): of the results.
            device (Device): what is known of the GPU.

        Returns:
            tuple[PaddedMap, dict[Conv2d, tuple[Packing, Tensor]]]: the input as
            :meth:`PolicyNetwork._stack` has it, with zeros up to a multiple of CHANNELS; and of
            every 3x3 convolution how its product is packed, and the weights as they are now,
            (O, pixels, 3, row), followed by those of the shortcut beside it.
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
        packers = triton.cdiv(4 * device.num_sms, len(weights))
        tiles = triton.cdiv(stacked.num_pixels, 128)
        programs = packers * len(weights) + tiles * (channels // CHANNELS) * num_streams
        inputs_kernel[(programs,)](
            base, self._table, packed, packers, len(weights),
            *maps, grid, scale, stacked.values, height, width, num_classes, height // grid.shape[2],
            tiles, *(stride for x in maps for stride in x.stride()),
            grid.stride(0), grid.stride(2), grid.stride(3), FIELDS=_FIELDS, BLOCK=2048,
            FRAME=scale.numel(), C=channels, BM=128, BC=CHANNELS, num_warps=4,
            **device.launch_options,
        )  # fmt: skip
        places = self._places.items()
        return stacked, {conv: (how, packed[start:]) for conv, (how, start) in places}


def _weight_table(network):
    """
    Returns:
        tuple[Tensor, int, dict[Conv2d, tuple[Packing, int]]]: int64 (weights, _FIELDS) as _pack()
        reads it, the size of what it writes, and of a 3x3 convolution how its product is packed and
        where in there its weights start.
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
            table.append([
                source, size, rows, kernel, channels, packed.channels, packed.pixels,
                packed.stride, packed.row, *weight.stride(),
            ])  # fmt: skip
            size += rows * packed.row
    return torch.tensor(table, dtype=torch.int64, device=first.device), size, places
