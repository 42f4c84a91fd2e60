"""The operators of a Program as Triton kernels, on buffers that stay in place.

The first frame of a stream allocates its maps and binds every launch to them; a later frame only
launches. Nothing on the host depends on which blocks are active, so a frame can be captured in a
CUDA graph: read the inputs from the same tensors and the blocks from a DeviceGrid.

Shape shorthand: N streams, GH x GW blocks, C channels, H x W pixels of a map.
"""

import dataclasses

import torch

from blockcopy_d2.kernels.device import Device
from blockcopy_d2.kernels.tf32 import round_tf32_reference

from .lowering import lower, scratch_map
from .program import GlobalMean
from .state import FeatureMap
from .triton_binding import BINDERS
from .triton_ops.block_launch import BlockLaunch
from .triton_ops.bottleneck import pack_bottleneck, widest_bottleneck
from .triton_ops.conv_shape import pack_weight
from .triton_ops.copy import CopyLaunch
from .triton_ops.geometry import Tiling
from .triton_ops.partial_sums import Workspace, workspace_size


class TritonExecution:
    """One frame of one program, with the interface of torch_ops.Execution."""

    def __init__(self, program, state, grid):
        self.program = program
        self.grid = grid
        self.state = state
        self.caches = state.caches(program, grid)

    def run(self, tensors):
        """
        Returns the program's outputs for its input tensors, as a flat list of the stream's own
        maps.
        """
        tensors = dict(zip(self.program.inputs, tensors))
        shared = {index: self.state.find(tensor) for index, tensor in tensors.items()}
        bound = self.caches.bound
        if bound is None or bound.shared != shared:
            if self.program.lowered is None:
                self.program.lowered = LoweredForTriton(self.program, tensors)
            bound = self.caches.bound = Bound(self.program, self.caches, self.grid, shared)
        bound.run(self.grid, tensors)
        return self.state.outputs(self.program)


class LoweredForTriton:
    """Shared by all streams: the schedule, packed weights, scratch memory."""

    def __init__(self, program, tensors):
        tensor = next(iter(tensors.values()))
        self.device = Device(tensor.device)
        self.schedule = lower(program, widest_bottleneck(self.device, tensor.dtype))
        # 0xFF bytes are NaN in every float type, so that reads of unwritten memory show.
        self.scratch = torch.full(
            (self.schedule.scratch_bytes,), 0xFF, dtype=torch.uint8, device=tensor.device
        )
        tf32 = tensor.is_cuda and torch.backends.cudnn.allow_tf32
        self.precision = "tf32" if tf32 else "ieee"
        self._packed, self._joined = {}, {}
        self._workspace = None

    def packed(self, weight, bias, shape, config):
        """PackedWeight; weights that several operators share are packed once."""
        key = (weight.data_ptr(), bias is not None and bias.data_ptr(), shape, config)
        if key not in self._packed:
            # The tensors are kept with it, so that their addresses are not reused.
            packed = pack_weight(self._rounded(weight), bias, shape, config)
            self._packed[key] = (packed, weight, bias)
        return self._packed[key][0]

    def joined(self, pair):
        """Returns weight and bias of a ConvolutionPair, joined as one convolution; made once."""
        operators = (pair.first, pair.second)
        key = tuple(operator.weight.data_ptr() for operator in operators)
        if key not in self._joined:
            biases = [
                op.weight.new_zeros(len(op.weight)) if op.bias is None else op.bias
                for op in operators
            ]
            weight = torch.cat([operator.weight for operator in operators])
            self._joined[key] = (weight, torch.cat(biases))
        return self._joined[key]

    def bottleneck(self, block):
        """BottleneckWeights, made once."""
        if block not in self._joined:
            parts = [op for op in (block.middle, block.last, block.following) if op is not None]
            weights = ((self._rounded(op.weight), op.bias) for op in parts)
            self._joined[block] = pack_bottleneck(*weights)
        return self._joined[block]

    def _rounded(self, weight):
        return round_tf32_reference(weight) if self.precision == "tf32" else weight

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
        convolutions: the ConvolutionLaunches and BottleneckLaunches, for the search of
            configurations.
    """

    def __init__(self, program, caches, grid, shared):
        self.program = program
        self.caches = caches
        self.shared = shared
        self.lowered = program.lowered
        self.schedule = self.lowered.schedule
        self.batch = len(grid.active)
        self.block_size = grid.block_size
        self.grid_shape = grid.shape
        self.torch_device = grid.active.device
        self.objects = {}  # results of this frame that are not maps
        self.maps = {}
        for index in self.schedule.places:
            self.maps[index] = self._map(index)
            self.maps[index].lifted = self._is_lifted(index)
        self.factors = {self.factor(program.values[index].stride) for index in self.schedule.places}
        self.inputs = [
            (index, self.factor(program.values[index].stride), self.copy(index))
            for index in program.inputs
            if index in self.maps and shared[index] is None
        ]
        self.convolutions = []
        self.steps = []
        for step in self.schedule.steps:
            launch = BINDERS[type(step.operators[0])](self, step)
            if launch is not None:
                self.steps.append((self.factor(self.step_stride(step)), launch))
        # From here on, another launch lies between this one and those that list the blocks.
        kernels = [isinstance(launch, BlockLaunch) for _, launch in self.steps]
        first = kernels.index(True) + 1 if True in kernels else len(kernels)
        self.first_settled = 0 if self.inputs else first

    def run(self, grid, tensors):
        lists = {factor: grid.block_list(factor) for factor in self.factors}
        for index, tensor in tensors.items():
            if self.program.values[index].stride is None:
                self.objects[index] = tensor
        for index, factor, copy in self.inputs:
            copy(tensors[index], lists[factor])
        for factor, launch in self.steps[: self.first_settled]:
            launch(lists[factor])
        settled = {f: dataclasses.replace(blocks, settled=True) for f, blocks in lists.items()}
        for factor, launch in self.steps[self.first_settled :]:
            launch(settled[factor])

    # ---------------------------------------------------------------- geometry

    def factor(self, stride):
        """The number of blocks along an axis that count as one at a stride."""
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
        root, start = self.schedule.places[index]
        value, caches = self.program.values[index], self.caches
        if self.shared.get(index) is not None:
            caches.maps[index] = self.shared[index]
        elif root != index:
            if root not in self.maps:
                self.maps[root] = self._map(root)
            caches.maps[index] = self.maps[root].channels(start, value.shape[1])
        elif index in self.maps:
            return self.maps[index]
        elif self.schedule.buffers[index].persistent:
            if index not in caches.maps or index in self.shared:
                caches.maps[index] = self._persistent_map(value)
        else:
            rows = scratch_map(self.schedule.buffers[index], self.lowered.scratch)
            return FeatureMap.of_rows(rows, batch=self.batch, size=value.size)
        return caches.maps[index]

    def _is_lifted(self, index):
        tf32 = self.lowered.precision == "tf32"
        return (
            tf32 and self.maps[index].rows.dtype == torch.float32 and index in self.schedule.lifted
        )

    def _persistent_map(self, value):
        batch, channels, *size = value.shape
        options = dict(batch=batch, size=size, dtype=value.dtype, device=self.torch_device)
        if value.index not in self.program.inputs or channels >= 16:
            return FeatureMap(channels=channels, **options)
        # An image: pixels whose number of channels is a power of two are read in one piece.
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
        """
        Returns means and squared deviations (N, GH * GW, C) per block of the input of `operator`.
        """
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

    def copy(self, index, **options):
        options |= {"precision": self.lowered.precision, "device": self.lowered.device}
        return CopyLaunch(self.maps[index], self.tiling(index), **options)
