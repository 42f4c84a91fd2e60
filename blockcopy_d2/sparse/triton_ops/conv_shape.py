"""A convolution as its kernel takes it: shape, configuration, and how weights are laid out.

Shape shorthand: N streams, C channels, H x W pixels of a map, KH x KW taps.
"""

import dataclasses
from typing import Any

import torch
import triton

from .activation import parameters


@dataclasses.dataclass(frozen=True)
class ConvolutionConfig:
    """Division of the work of a launch. See tuning.py for where the values come from.

    Attributes:
        bm, bn, bk: pixels, channels and reduction of a tile.
        num_warps, num_stages: warps and pipeline stages of a program.
        max_splits: the reduction of a tile is split over up to so many programs.
        per_sm: programs per multiprocessor that share all tiles; 0 gives each tile its own.
        swap: weights are the first factor of the product, which needs 64 rows to use the fast
            instructions of Hopper: for tiles of fewer pixels.
    """

    bm: int
    bn: int
    bk: int
    num_warps: int = 4
    num_stages: int = 3
    max_splits: int = 1
    per_sm: int = 0
    swap: bool = False


@dataclasses.dataclass(frozen=True)
class ConvolutionShape:
    """Common to the programs of a convolution, on maps of any size.

    Attributes:
        in_channels, out_channels, groups, kernel (y, x), stride, dilation (y, x): as in conv2d.
        padding: zeros above and left of the map; those below and right follow from the sizes.
        out_step, out_offset: output pixel p is written to p * out_step + out_offset (y, x).
        activation: program.Activation or None.
        residual_scale: output pixels per residual pixel along an axis; 0 without a residual.
        first_out: output channels of the first of two convolutions that run as one; None for a
            single one.
        second_activation: activation of the second.
    """

    in_channels: int
    out_channels: int
    groups: int
    kernel: tuple
    stride: int
    padding: tuple
    dilation: tuple
    out_step: int = 1
    out_offset: tuple = (0, 0)
    activation: Any = None
    residual_scale: int = 0
    first_out: int | None = None
    second_activation: Any = None

    @property
    def units(self):
        """(number, input channels, output channels) of the dense units a grouped one runs as."""
        together = self.groups
        for divisor in range(1, self.groups + 1):
            wide = divisor * self.out_channels // self.groups >= 32
            if self.groups % divisor == 0 and wide:
                together = divisor
                break
        units = self.groups // together
        return units, self.in_channels // units, self.out_channels // units

    @property
    def first_outputs(self):
        """Output channels of a unit that go to the first of two maps."""
        return self.first_out or self.units[2]

    @property
    def activations(self):
        """Those of both, as activate() takes them."""
        return parameters(self.activation), parameters(self.second_activation)

    @property
    def reads_beyond_border(self):
        """Returns whether taps may fall outside of the input."""
        padded = tuple(self.kernel) != (1, 1) or tuple(self.padding) != (0, 0)
        return padded or self.out_step > 1

    @property
    def row_pack(self):
        """Channels per pixel when the reduction runs over kernel rows, 0 when over taps."""
        if self.groups > 1 or self.kernel[1] == 1 or self.in_channels >= 16:
            return 0
        return triton.next_power_of_2(self.in_channels)

    def reduction(self, bk):
        """(number of taps or rows, length of each rounded up to whole steps of `bk`)."""
        if self.row_pack:
            taps, length = self.kernel[0], self.kernel[1] * self.row_pack
        else:
            taps, length = self.kernel[0] * self.kernel[1], self.units[1]
        return taps, -(-length // bk) * bk


@dataclasses.dataclass
class PackedWeight:
    """Weight (rows, reduction) and float32 bias (rows,), zero-padded to whole tiles."""

    matrix: torch.Tensor
    bias: torch.Tensor

    @property
    def operand(self):
        """Arguments of kernels; the last is the size of the weight in bytes."""
        return self.matrix, self.bias, self.matrix.nbytes


def pack_weight(weight, bias, shape, config):
    """Lays out conv2d's weight (C_out, C_in / groups, KH, KW) and bias for convolution_kernel."""
    units, unit_in, unit_out = shape.units
    taps, length = shape.reduction(config.bk)
    kernel = tuple(shape.kernel)
    together = shape.groups // units
    per_group_in, per_group_out = weight.shape[1], shape.out_channels // shape.groups
    dense = weight.new_zeros(units, together, per_group_out, together, per_group_in, *kernel)
    grouped = weight.view(units, together, per_group_out, per_group_in, *kernel)
    for group in range(together):
        dense[:, group, :, group] = grouped[:, group]
    dense = dense.view(units, unit_out, unit_in, *kernel).permute(0, 1, 3, 4, 2)
    if shape.row_pack:
        dense = torch.nn.functional.pad(dense, (0, shape.row_pack - unit_in)).flatten(3)
    else:
        dense = dense.flatten(2, 3)
    rows = -(-unit_out // config.bn) * config.bn
    matrix = weight.new_zeros(units, rows, taps, length)
    matrix[:, :unit_out, :, : dense.shape[3]] = dense
    packed_bias = torch.zeros(units, rows, dtype=torch.float32, device=weight.device)
    if bias is not None:
        packed_bias[:, :unit_out] = bias.float().view(units, unit_out)
    return PackedWeight(matrix.view(units * rows, -1), packed_bias.flatten())


def transposed_phases(weight, *, groups, stride, padding, activation=None):
    """A transposed convolution as ordinary ones, each writing every stride-th output pixel.

    Output pixel o = j * stride + phase collects the taps t = r + stride * q of the input pixels
    (o + padding - t) / stride, where r = (phase + padding) mod stride: with q counted backwards, a
    convolution at the input's resolution.

    Args:
        weight: (C_in, C_out / groups, KH, KW) of conv_transpose2d.
        groups: as there; stride: int; padding: (y, x).
        activation: program.Activation or None.

    Yields:
        (ConvolutionShape, weight like conv2d's), for stride * stride phases.
    """
    in_channels, per_group_out, *kernel = weight.shape
    grouped = weight.view(groups, in_channels // groups, per_group_out, *kernel).transpose(1, 2)
    grouped = grouped.reshape(groups * per_group_out, in_channels // groups, *kernel)
    for phase in ((y, x) for y in range(stride) for x in range(stride)):
        part, before = grouped, []
        for axis in (0, 1):
            remainder = (phase[axis] + padding[axis]) % stride
            taps = list(range(remainder, kernel[axis], stride))[::-1]
            before.append(max(len(taps), 1) - 1 - (phase[axis] + padding[axis]) // stride)
            index = torch.tensor(taps, dtype=torch.int64, device=weight.device)
            part = part.index_select(2 + axis, index)
            if not taps:  # a stride above the kernel size leaves pixels that no tap reaches
                shape = list(part.shape)
                shape[2 + axis] = 1
                part = part.new_zeros(shape)
        channels = dict(in_channels=in_channels, out_channels=len(grouped), groups=groups)
        window = dict(
            kernel=tuple(part.shape[2:]), padding=tuple(before), stride=1, dilation=(1, 1)
        )
        place = dict(out_step=stride, out_offset=phase)
        yield ConvolutionShape(**channels, **window, **place, activation=activation), part


def convolution_reference(x, weight, bias, shape, residual=None):
    """The whole map that the kernel computes in parts, (N, C, H, W), in plain PyTorch."""
    y = torch.nn.functional.conv2d(
        x, weight, bias, shape.stride, shape.padding, shape.dilation, shape.groups
    )
    if residual is not None:
        y = y + residual.repeat_interleave(shape.residual_scale, 2).repeat_interleave(
            shape.residual_scale, 3
        )
    return y if shape.activation is None else shape.activation(y)
