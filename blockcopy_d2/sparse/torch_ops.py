"""The operators of a Program in plain PyTorch, on any device: gather, compute, scatter.

Feature maps are rows of C channels (state.FeatureMap). An operator gathers the inputs of the active
blocks as a batch of tiles, computes them with the dense library, and writes the rows back. When all
blocks are active it works on whole maps instead: each is a single tile.

Shape shorthand: N streams, A active blocks, T x T pixels of a block at the operator's stride, C
channels, H x W pixels of a map. Tiles are (A, C, T, T), or (N, C, H, W) when all blocks are active.
"""

import torch
import torch.nn.functional as F

from .program import (
    Affine,
    Convolution,
    Densified,
    GlobalMean,
    GroupNorm,
    Pointwise,
    Pool,
    TransposedConvolution,
    Upsample,
)
from .state import FeatureMap


class Execution:
    """One frame of one program: the tiles computed so far and the caches of the stream."""

    def __init__(self, program, state, grid):
        self.program = program
        self.grid = grid
        self.full = grid.is_full
        self.state = state
        self.caches = state.caches(program, grid)
        self.tiles_of = {}
        self.whole = {}

    def run(self, tensors):
        """Returns the program's outputs for its input tensors, as a flat list."""
        program = self.program
        operators = program.operators
        if self.grid.is_empty:
            # Operators without a block-sparse rule have new inputs if maps were moved.
            operators = [op for op in operators if isinstance(op, Densified) and self.caches.moved]
            self.whole.update(self.caches.whole)
        if operators:
            for index, tensor in zip(program.inputs, tensors):
                self.read_input(index, tensor)
        for position, operator in enumerate(operators):
            _OPERATORS[type(operator)](operator, self)
            for index in operator.inputs:
                if program.last_use[index] == position:
                    self.tiles_of.pop(index, None)
        self.caches.moved = False
        return self.state.outputs(program)

    # ---------------------------------------------------------------- reading

    def level(self, operator):
        return self.grid.at_stride(self.program.values[operator.output].stride)

    def tiles(self, index, level):
        """Value `index` in the active blocks of `level`, (A, C, T, T)."""
        value = self.program.values[index]
        if value.stride is None:
            tensor = self.whole[index]
            return tensor if self.full else tensor[level.selection.stream]
        if index in self.tiles_of and self.same_blocks(index, level):
            return self.tiles_of[index]
        if self.full:
            return self.map(index)
        own = self.grid.at_stride(value.stride)
        return self.gather(index, own.tile_rows(outside="read"), own.tile, own.tile)

    def same_blocks(self, index, level):
        """Returns whether value `index` has the same active blocks as `level`."""
        own = self.grid.at_stride(self.program.values[index].stride)
        return own.selection is level.selection

    def gather(self, index, rows, height, width):
        """Rows of value `index` as tiles (A, C, height, width)."""
        gathered = self.caches.maps[index].rows.index_select(0, rows)
        return gathered.view(-1, height, width, gathered.shape[-1]).permute(0, 3, 1, 2)

    def map(self, index):
        """Value `index` as a whole map (N, C, H, W), or the tensor of a value not aligned."""
        if self.program.values[index].stride is None:
            return self.whole[index]
        if self.full and index in self.tiles_of:
            return self.tiles_of[index]
        return self.caches.maps[index].as_nchw()

    # ---------------------------------------------------------------- writing

    def write(self, operator, tiles):
        """Accepts the tiles (A, C, T, T) of an operator's output, its activation applied."""
        if operator.activation is not None:
            tiles = operator.activation(tiles)
        index = operator.output
        value = self.program.values[index]
        self.tiles_of[index] = tiles
        if not value.persistent:
            return
        feature_map = self.feature_map(index, tiles.device)
        channels_last = tiles.permute(0, 2, 3, 1)
        if self.full:
            feature_map.pixels.copy_(channels_last)
        else:
            rows = self.grid.at_stride(value.stride).tile_rows(outside="write")
            feature_map.rows.index_copy_(0, rows, channels_last.reshape(len(rows), -1))

    def write_whole(self, index, tensor):
        """Accepts an output that is not computed block by block."""
        value = self.program.values[index]
        if value.stride is None:
            self.whole[index] = tensor
            self.caches.whole[index] = tensor
        else:
            self.feature_map(index, tensor.device).pixels.copy_(tensor.permute(0, 2, 3, 1))

    def feature_map(self, index, device):
        """The FeatureMap of value `index`, made on the first frame."""
        maps = self.caches.maps
        if index not in maps:
            value = self.program.values[index]
            batch, channels, *size = value.shape
            maps[index] = FeatureMap(
                batch=batch, channels=channels, size=size, dtype=value.dtype, device=device
            )
        return maps[index]

    def read_input(self, index, tensor):
        """Copies the active blocks of an input (N, C, H, W). The others stay as last executed."""
        value = self.program.values[index]
        if value.stride is None:
            self.whole[index] = tensor.to(value.dtype)
            return
        shared = self.state.find(tensor)
        if shared is not None:
            self.caches.maps[index] = shared
            return
        feature_map = self.feature_map(index, tensor.device)
        pixels = tensor.permute(0, 2, 3, 1)
        level = self.grid.at_stride(value.stride)
        if self.full:
            feature_map.pixels.copy_(pixels)
        elif tensor.is_cuda:
            active = level.pixel_mask()[..., None]
            pixels = pixels.to(feature_map.pixels.dtype)
            feature_map.pixels.copy_(torch.where(active, pixels, feature_map.pixels))
        else:
            # On a CPU touching the inactive blocks would cost more than these few copies.
            for stream, ys, xs in level.slices():
                feature_map.pixels[stream, ys, xs] = pixels[stream, ys, xs]


# -------------------------------------------------------------------- operators


def _convolution(op, run):
    level = run.level(op)
    x = op.inputs[0]
    if run.full:
        y = F.conv2d(run.map(x), op.weight, op.bias, op.stride, op.padding, op.dilation, op.groups)
    elif not op.has_halo and run.same_blocks(x, level):
        y = F.conv2d(run.tiles(x, level), op.weight, op.bias, op.stride, 0, 1, op.groups)
    else:
        y = _windowed_convolution(op, run, level)
    if op.residual is not None:
        y = y.add_(run.tiles(op.residual, level))
    run.write(op, y)


def _windowed_convolution(op, run, level):
    """Convolution of the active blocks with the pixels around them."""
    size = run.program.values[op.inputs[0]].size
    spans = [
        (level.tile - 1) * stride + (kernel - 1) * dilation + 1
        for stride, kernel, dilation in zip(op.stride, op.kernel, op.dilation)
    ]
    taps = op.kernel[0] * op.kernel[1]
    copies = taps * level.tile**2 / (spans[0] * spans[1])
    if op.groups == 1 and copies <= (4 if level.tile <= 4 else 1):
        # Small tiles: the halo outweighs the tile, and one matrix product per layer is faster.
        rows = level.tap_rows(
            size, kernel=op.kernel, stride=op.stride, padding=op.padding, dilation=op.dilation
        )
        columns = run.caches.maps[op.inputs[0]].rows.index_select(0, rows)
        columns = columns.view(-1, taps * columns.shape[-1])
        y = F.linear(columns, op.matrix, op.bias)
        return y.view(-1, level.tile, level.tile, y.shape[-1]).permute(0, 3, 1, 2)
    x = _window(op.inputs[0], run, level, spans, op.stride, [-pad for pad in op.padding])
    return F.conv2d(x, op.weight, op.bias, op.stride, 0, op.dilation, op.groups)


def _window(index, run, level, window, stride, start, outside="read"):
    """Windows around the active blocks of `level` in the map of value `index`."""
    size = run.program.values[index].size
    rows = level.window_rows(
        size, window=tuple(window), stride=tuple(stride), start=tuple(start), outside=outside
    )
    return run.gather(index, rows, *window)


def _transposed_convolution(op, run):
    level = run.level(op)
    x = op.inputs[0]
    if run.full:
        y = F.conv_transpose2d(
            run.map(x), op.weight, op.bias, op.stride, op.padding, op.output_padding, op.groups
        )
    elif not op.has_halo:
        y = F.conv_transpose2d(run.tiles(x, level), op.weight, op.bias, op.stride, 0, 0, op.groups)
    else:
        # Output o collects input i where o = i * stride - padding + tap; see the first and last i.
        start, window, crop = [], [], []
        for stride, padding, kernel in zip(op.stride, op.padding, op.kernel):
            first = -((kernel - 1 - padding) // stride)
            last = (level.tile - 1 + padding) // stride
            start.append(first)
            window.append(last - first + 1)
            crop.append(padding - first * stride)
        own = run.grid.at_stride(run.program.values[x].stride)
        tiles = _window(x, run, own, window, (1, 1), start)
        y = F.conv_transpose2d(tiles, op.weight, op.bias, op.stride, 0, 0, op.groups)
        y = y[:, :, crop[0] : crop[0] + level.tile, crop[1] : crop[1] + level.tile]
    run.write(op, y)


def _pool(op, run):
    level = run.level(op)
    x = op.inputs[0]
    padding = (0, 0)
    if run.full:
        tiles, padding = run.map(x), op.padding
    elif not op.has_halo and run.same_blocks(x, level):
        tiles = run.tiles(x, level)
    else:
        window = [
            (level.tile - 1) * stride + (kernel - 1) * dilation + 1
            for stride, kernel, dilation in zip(op.stride, op.kernel, op.dilation)
        ]
        start = [-pad for pad in op.padding]
        tiles = _window(x, run, level, window, op.stride, start)
        if op.kind == "max" and op.has_halo and not run.program.values[x].nonnegative:
            size = run.program.values[x].size
            outside = level.window_outside(size, window=window, stride=op.stride, start=start)
            tiles = tiles.masked_fill(outside[:, None], float("-inf"))
    if op.kind == "max":
        y = F.max_pool2d(tiles, op.kernel, op.stride, padding, op.dilation)
    else:
        y = F.avg_pool2d(tiles, op.kernel, op.stride, padding)
    run.write(op, y)


def _upsample(op, run):
    level = run.level(op)
    x = op.inputs[0]
    value = run.program.values[x]
    own = run.grid.at_stride(value.stride)
    if run.full:
        align = False if op.mode == "bilinear" else None
        y = F.interpolate(run.map(x), scale_factor=op.scale, mode=op.mode, align_corners=align)
    elif op.mode == "bilinear":
        # One pixel around the block; beyond the border the nearest one, as interpolation clamps.
        tiles = _window(x, run, own, [own.tile + 2] * 2, (1, 1), (-1, -1), outside="clamp")
        y = F.interpolate(tiles, scale_factor=op.scale, mode="bilinear", align_corners=False)
        y = y[:, :, op.scale : -op.scale, op.scale : -op.scale]
    elif run.same_blocks(x, level):
        y = F.interpolate(run.tiles(x, level), scale_factor=op.scale, mode="nearest")
    else:
        rows = level.nearest_rows(value.size, scale=op.scale)
        y = run.gather(x, rows, level.tile, level.tile)
    run.write(op, y)


def _group_norm(op, run):
    level = run.level(op)
    x = run.tiles(op.inputs[0], level)
    mean, variance = _refresh_statistics(op, run, level, x, op.groups)
    channels = x.shape[1]
    scale = torch.rsqrt(variance + op.eps).repeat_interleave(channels // op.groups, 1)
    shift = -mean.repeat_interleave(channels // op.groups, 1) * scale
    if op.weight is not None:
        scale, shift = scale * op.weight, shift * op.weight + op.bias
    if not run.full:
        scale, shift = scale[level.selection.stream], shift[level.selection.stream]
    scale, shift = (factor[:, :, None, None].to(x.dtype) for factor in (scale, shift))
    run.write(op, torch.addcmul(shift, x, scale))


def _global_mean(op, run):
    level = run.grid.at_stride(run.program.values[op.inputs[0]].stride)
    x = run.tiles(op.inputs[0], level)
    mean, _ = _refresh_statistics(op, run, level, x, x.shape[1])
    run.write_whole(op.output, mean.to(x.dtype).view(op.shape))


def _refresh_statistics(op, run, level, x, groups):
    """Returns mean and variance (N, groups) of the whole map from per-block sums, after renewing
    those of the active blocks.

    Each block keeps its own mean and sum of squared deviations, in float32, and they are combined
    as in Chan, Golub & LeVeque (1983): exact, and stable where a sum of squares is not.
    """
    streams, rows, columns = level.selection.active.shape
    statistics = run.caches.statistics.get(op.output)
    area = level.block_areas()  # (GH * GW,)
    if statistics is None:
        shape = (streams, rows * columns, groups)
        statistics = tuple(x.new_zeros(shape, dtype=torch.float32) for _ in range(2))
        run.caches.statistics[op.output] = statistics
    if run.full:
        # One tile per block, as on any other frame.
        tile = level.tile
        x = F.pad(x, (0, columns * tile - x.shape[3], 0, rows * tile - x.shape[2]))
        x = x.unflatten(3, (columns, tile)).unflatten(2, (rows, tile))
        x = x.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    x = x.float().unflatten(1, (groups, -1))
    inside = level.inside_tiles()  # (A, T, T), None when no block is clipped
    per_channel = x.shape[2]
    count = area[level.selection.block % (rows * columns)] * per_channel
    masked = x if inside is None else x * inside[:, None, None]
    mean = masked.sum((2, 3, 4)) / count[:, None]
    deviation = x - mean[:, :, None, None, None]
    if inside is not None:
        deviation = deviation * inside[:, None, None]
    for cache, new in zip(statistics, (mean, deviation.square_().sum((2, 3, 4)))):
        cache.view(-1, groups).index_copy_(0, level.selection.block, new)
    means, deviations = statistics
    share = (area / area.sum())[None, :, None]
    total = area.sum() * per_channel
    mean = (means * share).sum(1)
    spread = ((means - mean[:, None]).square() * share).sum(1)
    return mean, deviations.sum(1) / total + spread


def _affine(op, run):
    level = run.level(op)
    x = run.tiles(op.inputs[0], level)
    scale, shift = (factor[:, None, None].to(x.dtype) for factor in (op.scale, op.shift))
    run.write(op, torch.addcmul(shift, x, scale))


def _pointwise(op, run):
    level = run.level(op)
    result = op.call.evaluate({index: run.tiles(index, level) for index in op.inputs})
    if isinstance(result, torch.Tensor):
        run.write(op, result)
    else:
        run.tiles_of[op.output] = result


def _densified(op, run):
    run.write_whole(op.output, op.call.evaluate({index: run.map(index) for index in op.inputs}))


_OPERATORS = {
    Convolution: _convolution,
    TransposedConvolution: _transposed_convolution,
    Pool: _pool,
    Upsample: _upsample,
    GroupNorm: _group_norm,
    GlobalMean: _global_mean,
    Affine: _affine,
    Pointwise: _pointwise,
    Densified: _densified,
}
