"""Program: a network as a short list of fused operators over numbered feature maps.

Shape shorthand: N streams, C channels, H x W pixels of a map, KH x KW kernel.
"""

import dataclasses
import functools
from typing import Any

import torch


@dataclasses.dataclass
class Value:
    """A tensor of the network. Aligned values are feature maps at a stride of the input.

    Attributes:
        index: its number.
        shape: (N, C, H, W) of a feature map, any shape otherwise.
        dtype: type of its elements.
        stride: input pixels per pixel; None for a tensor that is not aligned with the block grid.
        nonnegative: known to hold no negative number.
        persistent: kept from frame to frame in a FeatureMap, since something reads it beyond the
            executed blocks. Other aligned values exist for the executed blocks of one frame only.
    """

    index: int
    shape: tuple
    dtype: torch.dtype | None = None
    stride: int | None = None
    nonnegative: bool = False
    persistent: bool = False

    @property
    def size(self):
        """(H, W)."""
        return tuple(self.shape[-2:])

    @property
    def num_pixels(self):
        """NHW."""
        return self.shape[0] * self.shape[-2] * self.shape[-1]


@dataclasses.dataclass(frozen=True)
class Activation:
    """An activation that closes an operator: an in-place ATen function and its arguments."""

    name: str
    arguments: tuple = ()

    def __call__(self, x):
        return getattr(torch.ops.aten, self.name + "_")(x, *self.arguments)


@dataclasses.dataclass(eq=False)
class Operator:
    """One step of a program; computes `output` from `inputs` (numbers of values)."""

    name: str
    inputs: list
    output: int
    activation: Activation | None = dataclasses.field(default=None, kw_only=True)

    # Whether an executed output pixel reads input pixels beyond those of its own block.
    has_halo = False
    # Multiply-accumulates per output pixel.
    macs_per_pixel = 0


@dataclasses.dataclass(eq=False)
class Convolution(Operator):
    """conv2d(x, weight) + bias (+ residual), then the activation. Batch norm is folded in."""

    weight: torch.Tensor  # (C_out, C_in / groups, KH, KW)
    bias: torch.Tensor | None
    stride: tuple
    padding: tuple
    dilation: tuple
    groups: int
    residual: int | None = None

    @property
    def kernel(self):
        return tuple(self.weight.shape[-2:])

    @property
    def has_halo(self):
        return self.kernel != (1, 1) or self.padding != (0, 0)

    @property
    def macs_per_pixel(self):
        return self.weight.numel()

    @functools.cached_property
    def matrix(self):
        """The weight as a matrix (C_out, KH * KW * C_in) on unfolded pixels."""
        return self.weight.permute(0, 2, 3, 1).flatten(1).contiguous()


@dataclasses.dataclass(eq=False)
class TransposedConvolution(Operator):
    """conv_transpose2d(x, weight) + bias, then the activation."""

    weight: torch.Tensor  # (C_in, C_out / groups, KH, KW)
    bias: torch.Tensor | None
    stride: tuple
    padding: tuple
    output_padding: tuple
    dilation: tuple
    groups: int

    @property
    def kernel(self):
        return tuple(self.weight.shape[-2:])

    @property
    def has_halo(self):
        return self.kernel != self.stride or self.padding != (0, 0)

    @property
    def macs_per_pixel(self):
        return self.weight.numel() / (self.stride[0] * self.stride[1])


@dataclasses.dataclass(eq=False)
class Pool(Operator):
    """max_pool2d or avg_pool2d (the padding counted as zeros)."""

    kind: str
    kernel: tuple
    stride: tuple
    padding: tuple
    dilation: tuple = (1, 1)

    @property
    def has_halo(self):
        return self.kernel != (1, 1) or self.padding != (0, 0)


@dataclasses.dataclass(eq=False)
class Upsample(Operator):
    """Nearest or bilinear (align_corners=False) upsampling by an integer factor."""

    mode: str
    scale: int

    @property
    def has_halo(self):
        return self.mode == "bilinear"


@dataclasses.dataclass(eq=False)
class GroupNorm(Operator):
    """Group normalisation over the whole map, from partial sums per block."""

    groups: int
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    eps: float


@dataclasses.dataclass(eq=False)
class GlobalMean(Operator):
    """Mean over the whole map, from partial sums per block. The output is not aligned."""

    shape: tuple


@dataclasses.dataclass(eq=False)
class Affine(Operator):
    """x * scale + shift per channel: a batch norm that no convolution precedes."""

    scale: torch.Tensor
    shift: torch.Tensor


@dataclasses.dataclass(eq=False)
class Pointwise(Operator):
    """A traced call whose pixels in a block depend on the same block of its inputs alone:
    arithmetic, concatenation of channels …"""

    call: Any


@dataclasses.dataclass(eq=False)
class Densified(Operator):
    """A traced call without a block-sparse rule: runs on full maps, replaces the full output."""

    call: Any
    macs_per_pixel: int = 0


@dataclasses.dataclass(eq=False)
class Program:
    """A compiled module for one input size and one block size.

    Attributes:
        inputs: number and, in order of the module's flattened arguments, one per tensor.
        values: number -> Value.
        operators: in order of execution.
        outputs: numbers (as Ref) or constants, put together by `output_spec`.
        last_use: number of a value -> position of the last operator that reads it.
        densified: names of the calls without a block-sparse rule.
        block_size: B in input pixels.
        lowered: data that a backend derives from the program once for all streams.
    """

    inputs: list
    values: dict
    operators: list
    outputs: list
    output_spec: Any
    last_use: dict
    densified: list
    block_size: int
    lowered: Any = None

    def macs(self, grid):
        """(executed, dense) multiply-accumulates of a frame with this grid, as integers."""
        executed = 0
        for operator in self.operators:
            value = self.values[operator.output]
            if operator.macs_per_pixel:
                if value.stride is None or isinstance(operator, Densified):
                    pixels = value.num_pixels
                else:
                    pixels = grid.at_stride(value.stride).num_pixels
                executed += operator.macs_per_pixel * pixels
        # If no block is active, not even densified operators run.
        return 0 if grid.is_empty else int(executed), self.dense_macs

    @property
    def dense_macs(self):
        """Multiply-accumulates of a frame with all blocks active."""
        return int(
            sum(
                operator.macs_per_pixel * self.values[operator.output].num_pixels
                for operator in self.operators
                if operator.macs_per_pixel
            )
        )
