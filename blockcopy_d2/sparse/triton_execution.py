"""The operators of a Program as Triton kernels, on buffers that stay in place.

The first frame of a stream allocates its maps and binds every launch to them; a later frame only
launches. Nothing on the host depends on which blocks are active, so a frame can be recorded in a
CUDA graph: read the inputs from the same tensors and the blocks from a DeviceGrid.

Shape shorthand: N streams, GH x GW blocks, C channels, H x W pixels of a map.
"""

import torch

from .capture import Ref
from .lowering import ConvolutionPair, call_name, lower, scratch_map
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
from .triton_ops.conv import ConvolutionLaunch, ConvolutionLevel, Workspace, workspace_size
from .triton_ops.conv_shape import ConvolutionShape, pack_weight, transposed_phases
from .triton_ops.copy import CopyLaunch
from .triton_ops.geometry import Tiling
from .triton_ops.normalization import StatisticsLaunch
from .triton_ops.pool import PoolLaunch
from .triton_ops.resample import UpsampleLaunch
from .triton_ops.tuning import Device, convolution_config


class TritonExecution:
    """One frame of one program; as torch_ops.Execution."""

    def __init__(self, program, state, grid):
        self.program = program
        self.grid = grid
        self.state = state
        self.caches = state.caches(program)
        if self.caches is None:
            if not grid.is_full:
                raise RuntimeError(
                    "The first frame of a stream must run all blocks: this StreamState holds no "
                    "features of this network at this size. Reset it and pass BlockGrid.full()."
                )
            self.caches = state.create_caches(program)

    def run(self, tensors):
        """The program's outputs for its input tensors, as a flat list; maps of the stream's own."""
        tensors = dict(zip(self.program.inputs, tensors))
        shared = {index: self.state.find(tensor) for index, tensor in tensors.items()}
        bound = self.caches.bound
        if bound is None or bound.shared != shared:
            if self.program.lowered is None:
                self.program.lowered = LoweredForTriton(self.program, tensors)
            bound = self.caches.bound = Bound(self.program, self.caches, self.grid, shared)
        bound.run(self.grid, tensors)
        return [self.output(output) for output in self.program.outputs]

    def output(self, output):
        if not isinstance(output, Ref):
            return output
        if self.program.values[output.index].stride is None:
            return self.caches.whole[output.index]
        feature_map = self.caches.maps[output.index]
        self.state.share(feature_map)
        return feature_map.as_nchw()


class LoweredForTriton:
    """What all streams share: the plan, packed weights, scratch memory."""

    def __init__(self, program, tensors):
        tensor = next(iter(tensors.values()))
        self.plan = lower(program)
        self.device = Device(tensor.device)
        # 0xFF bytes are NaN in every float type: what is read unwritten shows.
        self.scratch = torch.full(
            (self.plan.scratch_bytes,), 0xFF, dtype=torch.uint8, device=tensor.device
        )
        self.precision = "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"
        self._packed, self._joined = {}, {}
        self._workspace = None

    def packed(self, weight, bias, shape, config):
        """PackedWeight; weights that several operators share are packed once."""
        key = (weight.data_ptr(), bias is not None and bias.data_ptr(), shape, config)
        if key not in self._packed:
            # The tensors are kept with it, so that no other takes their addresses.
            self._packed[key] = (pack_weight(weight, bias, shape, config), weight, bias)
        return self._packed[key][0]

    def joined(self, pair):
        """Weight and bias of a ConvolutionPair as of one convolution, made once."""
        operators = (pair.first, pair.second)
        key = tuple(operator.weight.data_ptr() for operator in operators)
        if key not in self._joined:
            biases = [
                operator.weight.new_zeros(len(operator.weight)) if operator.bias is None
                else operator.bias for operator in operators
            ]  # fmt: skip
            weight = torch.cat([operator.weight for operator in operators])
            self._joined[key] = (weight, torch.cat(biases))
        return self._joined[key]

    def workspace(self, config, device):
        """A Workspace that is large enough for a launch, shared with the launches before."""
        size = workspace_size(config, self.device.num_sms)
        if self._workspace is None or self._workspace.sums.numel() < size:
            self._workspace = Workspace(size, self.device.num_sms, device)
        return self._workspace


class Bound:
    """A program with the maps of one stream filled in.

    Attributes:
        shared: number of an input -> FeatureMap of another module that it is, or None.
        convolutions: the ConvolutionLaunches, for the search of configurations.
    """

    def __init__(self, program, caches, grid, shared):
        self.program = program
        self.caches = caches
        self.shared = shared
        self.lowered = program.lowered
        self.plan = self.lowered.plan
        self.batch = len(grid.active)
        self.block_size = grid.block_size
        self.grid_shape = grid.shape
        self.torch_device = grid.active.device
        self.objects = {}  # results of this frame that are no maps
        self.maps = {}
        for index in self.plan.places:
            self.maps[index] = self._map(index)
        self.factors = {self.factor(program.values[index].stride) for index in self.plan.places}
        self.inputs = [
            (index, self.factor(program.values[index].stride), self._copy(index))
            for index in program.inputs
            if index in self.maps and shared[index] is None
        ]
        self.convolutions = []
        self.steps = []
        for step in self.plan.steps:
            launch = _BINDERS[type(step.operators[0])](self, step)
            if launch is not None:
                self.steps.append((self.factor(self.step_stride(step)), launch))

    def run(self, grid, tensors):
        lists = {factor: grid.block_list(factor) for factor in self.factors}
        for index, tensor in tensors.items():
            if self.program.values[index].stride is None:
                self.objects[index] = tensor
        for index, factor, copy in self.inputs:
            copy(tensors[index], lists[factor])
        for factor, launch in self.steps:
            launch(lists[factor])

    # ---------------------------------------------------------------- geometry

    def factor(self, stride):
        """How many blocks along an axis count as one at a stride."""
        return 1 if stride is None else max(stride // self.block_size, 1)

    def step_stride(self, step):
        """Stride at which a step sees the blocks; None where it does not."""
        operator, values = step.operators[0], self.program.values
        if isinstance(operator, GlobalMean):
            return values[operator.inputs[0]].stride
        return values[operator.output].stride

    def tiling(self, index):
        """Tiling of the map of value `index`."""
        stride = self.program.values[index].stride
        rows, columns = (-(-extent // self.factor(stride)) for extent in self.grid_shape)
        tile = max(self.block_size // stride, 1)
        return Tiling(tile, rows, columns, self.batch * rows * columns)

    # ---------------------------------------------------------------- memory

    def _map(self, index):
        """The FeatureMap of an aligned value."""
        root, start = self.plan.places[index]
        value, caches = self.program.values[index], self.caches
        if self.shared.get(index) is not None:
            caches.maps[index] = self.shared[index]
        elif root != index:
            if root not in self.maps:
                self.maps[root] = self._map(root)
            caches.maps[index] = self.maps[root].channels(start, value.shape[1])
        elif index in self.maps:
            return self.maps[index]
        elif self.plan.buffers[index].persistent:
            if index not in caches.maps or index in self.shared:
                caches.maps[index] = self._persistent_map(value)
        else:
            rows = scratch_map(self.plan.buffers[index], self.lowered.scratch)
            return FeatureMap.of_rows(rows, batch=self.batch, size=value.size)
        return caches.maps[index]

    def _persistent_map(self, value):
        batch, channels, *size = value.shape
        options = dict(batch=batch, size=size, dtype=value.dtype, device=self.torch_device)
        if value.index not in self.program.inputs or channels >= 16:
            return FeatureMap(channels=channels, **options)
        # An image: pixels of a power of two of channels are read in one piece.
        padded = FeatureMap(channels=1 << (channels - 1).bit_length(), **options)
        padded.rows[:, channels:] = 0
        image = padded.channels(0, channels)
        image.zero_padded = True
        return image

    def tensor(self, index):
        """Value `index` as a whole tensor, (N, C, H, W) if it is a map."""
        if index in self.maps:
            return self.maps[index].as_nchw()
        return self.objects[index]

    def statistics(self, operator):
        """Means and squared deviations (N, GH * GW, C) per block of what `operator` reads."""
        kept = self.caches.statistics
        if operator.output not in kept:
            tiling = self.tiling(operator.inputs[0])
            channels = self.program.values[operator.inputs[0]].shape[1]
            shape = (self.batch, tiling.rows * tiling.columns, channels)
            kept[operator.output] = tuple(
                torch.full(shape, torch.nan, device=self.torch_device) for _ in range(2)
            )
        return kept[operator.output]

    # ---------------------------------------------------------------- binding

    def _copy(self, index, **options):
        return CopyLaunch(
            self.maps[index], self.tiling(index), pdl=self.lowered.device.pdl, **options
        )


def _convolution(bound, step):
    first, residual_scale = step.operators[0], 0
    if first in bound.plan.residuals:
        residual_scale = bound.plan.residuals[first][1]
    shape = ConvolutionShape(
        in_channels=first.weight.shape[1] * first.groups, out_channels=first.weight.shape[0],
        groups=first.groups, kernel=first.kernel, stride=first.stride[0], padding=first.padding,
        dilation=first.dilation, activation=first.activation, residual_scale=residual_scale,
    )  # fmt: skip
    return _launch_convolution(bound, shape, [(op, op.weight, op.bias) for op in step.operators])


def _convolution_pair(bound, step):
    first, second = step.operators[0].first, step.operators[0].second
    shape = ConvolutionShape(
        in_channels=first.weight.shape[1], first_out=first.weight.shape[0],
        out_channels=first.weight.shape[0] + second.weight.shape[0], groups=1,
        kernel=first.kernel, stride=first.stride[0], padding=first.padding,
        dilation=first.dilation, activation=first.activation, second_activation=second.activation,
    )  # fmt: skip
    parts = [(pair, *bound.lowered.joined(pair)) for pair in step.operators]
    return _launch_convolution(bound, shape, parts)


def _launch_convolution(bound, shape, parts, tiled_as=None):
    """Launch of (operator, weight, bias) for every level; blocks tile value `tiled_as`."""
    lowered = bound.lowered
    out = bound.maps[parts[0][0].output]
    tilings = [
        bound.tiling(operator.output if tiled_as is None else tiled_as) for operator, _, _ in parts
    ]
    pixels = sum(tiling.num_pixels for tiling in tilings)
    config = convolution_config(shape, pixels, out.rows.dtype, lowered.device)
    levels = []
    for (operator, weight, bias), tiling in zip(parts, tilings):
        residual = bound.plan.residuals.get(operator)
        levels.append(
            ConvolutionLevel(
                x=bound.maps[operator.inputs[0]],
                out=bound.maps[operator.output],
                packed=lowered.packed(weight, bias, shape, config),
                tiling=tiling,
                residual=residual and bound.maps[residual[0]],
                second=bound.maps[operator.second.output] if shape.first_out else None,
            )
        )
    launch = ConvolutionLaunch(
        shape, config, levels, precision=lowered.precision, num_sms=lowered.device.num_sms,
        workspace=lowered.workspace(config, out.rows.device), pdl=lowered.device.pdl,
    )  # fmt: skip
    bound.convolutions.append(launch)
    return launch


def _transposed_convolution(bound, step):
    (op,) = step.operators
    phases = transposed_phases(
        op.weight, groups=op.groups, stride=op.stride[0], padding=op.padding,
        activation=op.activation,
    )  # fmt: skip
    launches = [
        _launch_convolution(bound, shape, [(op, weight, op.bias)], tiled_as=op.inputs[0])
        for shape, weight in phases
    ]

    def run(blocks):
        for launch in launches:
            launch(blocks)

    return run


def _pool(bound, step):
    (op,) = step.operators
    return PoolLaunch(
        bound.maps[op.inputs[0]], bound.maps[op.output], bound.tiling(op.output), kind=op.kind,
        kernel=op.kernel, stride=op.stride[0], padding=op.padding, dilation=op.dilation,
        pdl=bound.lowered.device.pdl,
    )  # fmt: skip


def _upsample(bound, step):
    (op,) = step.operators
    return UpsampleLaunch(
        bound.maps[op.inputs[0]], bound.maps[op.output], bound.tiling(op.output), scale=op.scale,
        mode=op.mode, pdl=bound.lowered.device.pdl,
    )  # fmt: skip


def _group_norm(bound, step):
    (op,) = step.operators
    x = bound.maps[op.inputs[0]]
    statistics = StatisticsLaunch(
        x, bound.tiling(op.inputs[0]), bound.statistics(op), groups=op.groups,
        normalize=(op.weight, op.bias, op.eps), pdl=bound.lowered.device.pdl,
    )  # fmt: skip
    apply = bound._copy(
        op.output, scale=statistics.scale, shift=statistics.shift, activation=op.activation
    )

    def run(blocks):
        statistics(blocks)
        apply(x.as_nchw(), blocks)

    return run


def _global_mean(bound, step):
    (op,) = step.operators
    x = bound.maps[op.inputs[0]]
    statistics = StatisticsLaunch(
        x, bound.tiling(op.inputs[0]), bound.statistics(op), groups=x.rows.shape[1],
        pdl=bound.lowered.device.pdl,
    )  # fmt: skip
    result = statistics.scale.view(op.shape)
    bound.objects[op.output] = bound.caches.whole[op.output] = result
    return statistics


def _affine(bound, step):
    (op,) = step.operators
    copy = bound._copy(
        op.output, scale=op.scale.float(), shift=op.shift.float(), activation=op.activation
    )
    x = bound.tensor(op.inputs[0])
    return lambda blocks: copy(x, blocks)


def _pointwise(bound, step):
    """Runs the call on whole maps, and keeps what it gives for the active blocks."""
    (op,) = step.operators
    if call_name(op) == "cat":
        return _concatenation(bound, op)
    if op.output not in bound.maps:

        def evaluate(blocks):
            values = {index: bound.tensor(index) for index in op.inputs}
            bound.objects[op.output] = op.call.evaluate(values)

        return evaluate
    copy = bound._copy(op.output)

    def run(blocks):
        values = {index: bound.tensor(index) for index in op.inputs}
        copy(op.call.evaluate(values), blocks)

    return run


def _concatenation(bound, op):
    """Copies the parts that were not written to their place right away."""
    copies, start = [], 0
    for index in op.inputs:
        part, count = bound.maps[index], bound.program.values[index].shape[1]
        target = bound.maps[op.output].channels(start, count)
        if part.rows.data_ptr() != target.rows.data_ptr():
            options = {"pdl": bound.lowered.device.pdl}
            copies.append((part.as_nchw(), CopyLaunch(target, bound.tiling(op.output), **options)))
        start += count

    def run(blocks):
        for part, copy in copies:
            copy(part, blocks)

    return run if copies else None


def _densified(bound, step):
    (op,) = step.operators

    def run(blocks):
        result = op.call.evaluate({index: bound.tensor(index) for index in op.inputs})
        if op.output in bound.maps:
            bound.maps[op.output].pixels.copy_(result.permute(0, 2, 3, 1))
        else:
            bound.objects[op.output] = bound.caches.whole[op.output] = result

    return run


_BINDERS = {
    Affine: _affine,
    Convolution: _convolution,
    ConvolutionPair: _convolution_pair,
    Densified: _densified,
    GlobalMean: _global_mean,
    GroupNorm: _group_norm,
    Pointwise: _pointwise,
    Pool: _pool,
    TransposedConvolution: _transposed_convolution,
    Upsample: _upsample,
}
