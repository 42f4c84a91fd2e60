"""Finds operators of a program that share a launch, for backends that write in place.

Shape shorthand: C channels.
"""

import dataclasses

from .program import Convolution, Upsample
from .tracing import Ref


@dataclasses.dataclass(eq=False)
class ConvolutionPair:
    """Two convolutions of one map that differ in weights and activation only: one product."""

    first: Convolution
    second: Convolution

    @property
    def inputs(self):
        return self.first.inputs

    @property
    def output(self):
        return self.first.output


@dataclasses.dataclass(eq=False)
class Bottleneck:
    """Convolutions in a row, all but the first pixel by pixel. The middle channels of a residual
    block never leave the launch.

    Attributes:
        middle: its result is read by `last` alone.
        last: 1x1; may have a residual.
        following: 1x1, of the next block; may be None.
    """

    middle: Convolution
    last: Convolution
    following: Convolution | None

    @property
    def inputs(self):
        return [self.middle.inputs[0], *self.last.inputs[1:]]

    @property
    def output(self):
        return self.last.output


def fold_upsampling(program):
    """Fuses nearest upsampling into the convolution that it is added to, if nothing else reads it.

    Returns:
        the remaining operators; the values that each reads; (value, scale) of convolutions'
        residuals.
    """
    outputs = {output.index for output in program.outputs if isinstance(output, Ref)}
    uses = {}
    for operator in program.operators:
        for index in operator.inputs:
            uses.setdefault(index, []).append(operator)
    operators, reads, residuals = list(program.operators), {}, {}
    producers = {operator.output: operator for operator in program.operators}
    for operator in program.operators:
        reads[operator] = list(operator.inputs)
        if not isinstance(operator, Convolution) or operator.residual is None:
            continue
        index, scale = operator.residual, 1
        upsample = producers.get(index)
        if isinstance(upsample, Upsample) and upsample.mode == "nearest":
            if len(uses[index]) == 1 and index not in outputs:
                index, scale = upsample.inputs[0], upsample.scale
                operators.remove(upsample)
        reads[operator] = [operator.inputs[0], index]
        residuals[operator] = (index, scale)
    return operators, reads, residuals


def pair_convolutions(operators, reads, residuals):
    """
    Pairs convolutions of the same map: the shortcut and the first convolution of a residual stage,
    the predictors of a head.
    """
    open_operators, paired = {}, []
    for operator in operators:
        key = None
        if isinstance(operator, Convolution) and operator not in residuals:
            window = operator.kernel, operator.stride, operator.padding, operator.dilation
            key = (operator.inputs[0], window, operator.weight.dtype)
            key = key if operator.groups == 1 else None
        position = open_operators.pop(key, None)
        if position is not None:
            paired[position] = ConvolutionPair(paired[position], operator)
            reads[paired[position]] = list(operator.inputs)
            continue
        if key is not None:
            open_operators[key] = len(paired)
        paired.append(operator)
    return paired


def fuse_bottlenecks(program, operators, reads, residuals, widest):
    """Groups the rest of a residual block with the convolution that opens the next one."""
    readers = {}
    for operator in operators:
        for index in reads[operator]:
            readers.setdefault(index, []).append(operator)
    for output in program.outputs:
        if isinstance(output, Ref):
            readers.setdefault(output.index, []).append(None)
    producers = {index: op for op in operators for index in outputs_of(op)}
    fused, gone = {}, set()
    for last in operators:
        middle = producers.get(reads[last][0]) if _is_narrow(last, residuals) else None
        if middle is None or middle in gone or last in gone:
            continue
        if not _can_be_middle(middle, last, readers, residuals, widest):
            continue
        following = [op for op in readers.get(last.output, []) if _follows(op, last, residuals)]
        following = following[0] if following else None
        if following is not None and not _is_power_of_two(len(following.weight), 16, widest):
            following = None
        bottleneck = fused[last] = Bottleneck(middle, last, following)
        reads[bottleneck] = [middle.inputs[0], *reads[last][1:]]
        gone |= {middle, following}
    return [fused.get(operator, operator) for operator in operators if operator not in gone]


def _is_narrow(operator, residuals):
    """Returns whether a convolution can be the second of a Bottleneck."""
    if not isinstance(operator, Convolution) or operator.has_halo or operator.groups > 1:
        return False
    scale = residuals.get(operator, (None, 1))[1]
    return operator.stride[0] == 1 and scale == 1 and len(operator.weight) % 64 == 0


def _can_be_middle(operator, last, readers, residuals, widest):
    return (
        isinstance(operator, Convolution)
        and operator not in residuals
        and operator.groups == 1
        and readers[operator.output] == [last]
        and _has_relu_or_none(operator)
        and _has_relu_or_none(last)
        and _is_power_of_two(len(operator.weight), 16, widest)
        and operator.weight.shape[1] % 16 == 0
    )


def _follows(operator, last, residuals):
    return (
        isinstance(operator, Convolution)
        and operator not in residuals
        and operator.inputs == [last.output]
        and not operator.has_halo
        and operator.stride[0] == 1
        and operator.groups == 1
        and _has_relu_or_none(operator)
    )


def _has_relu_or_none(operator):
    return operator.activation is None or operator.activation.name == "relu"


def _is_power_of_two(value, smallest, largest):
    return smallest <= value <= largest and value & (value - 1) == 0


def outputs_of(operator):
    """Numbers of the values that an operator writes."""
    if isinstance(operator, Bottleneck):
        following = [] if operator.following is None else [operator.following.output]
        return [operator.output, *following]
    if isinstance(operator, ConvolutionPair):
        return [operator.first.output, operator.second.output]
    return [operator.output]
