"""Binds the steps of a lowered program to the maps of one stream, as launches.

A binder takes a triton_execution.Bound and a Step. It returns a function that launches the step for
a BlockList, or None if there is nothing to do.
"""

from .fusion import Bottleneck, ConvolutionPair
from .lowering import call_name
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
from .triton_ops.bottleneck import BottleneckLaunch, BottleneckShape
from .triton_ops.box_conv import BoxConfig, BoxConvolutionLaunch, takes_boxes
from .triton_ops.conv import ConvolutionLaunch
from .triton_ops.conv_levels import ConvolutionLevel
from .triton_ops.conv_shape import ConvolutionShape, transposed_phases
from .triton_ops.copy import CopyLaunch
from .triton_ops.normalization import StatisticsLaunch
from .triton_ops.pool import PoolLaunch
from .triton_ops.resample import UpsampleLaunch
from .triton_ops.tuning import bottleneck_config, convolution_config


def _convolution(bound, step):
    first, residual_scale = step.operators[0], 0
    if first in bound.schedule.residuals:
        residual_scale = bound.schedule.residuals[first][1]
    shape = ConvolutionShape(
        out_channels=first.weight.shape[0], residual_scale=residual_scale, **_common(first)
    )
    return _launch_convolution(bound, shape, [(op, op.weight, op.bias) for op in step.operators])


def _convolution_pair(bound, step):
    first, second = step.operators[0].first, step.operators[0].second
    shape = ConvolutionShape(
        first_out=len(first.weight),
        out_channels=len(first.weight) + len(second.weight),
        second_activation=second.activation,
        **_common(first),
    )
    parts = [(pair, *bound.lowered.joined(pair)) for pair in step.operators]
    return _launch_convolution(bound, shape, parts)


def _common(operator):
    """Returns the part that the ConvolutionShapes of a Convolution and of its pair share."""
    names = ("kernel", "padding", "dilation", "groups", "activation")
    in_channels = operator.weight.shape[1] * operator.groups
    fields = {name: getattr(operator, name) for name in names}
    return {"in_channels": in_channels, "stride": operator.stride[0], **fields}


def _launch_convolution(bound, shape, parts, tiled_as=None):
    """
    Returns the launch of (operator, weight, bias) for every level; blocks tile value `tiled_as`.
    """
    lowered = bound.lowered

    def tiling_of(part):
        return bound.tiling(part[0].output if tiled_as is None else tiled_as)

    # The largest map first: small maps then fill the programs that its last tiles leave idle.
    parts = sorted(parts, key=lambda part: -tiling_of(part).num_pixels)
    tilings = [tiling_of(part) for part in parts]
    out = bound.maps[parts[0][0].output]
    tiles = [
        (bound.maps[operator.inputs[0]], tiling.tile)
        for (operator, _, _), tiling in zip(parts, tilings)
    ]
    num_pixels = sum(tiling.num_pixels for tiling in tilings)
    options = dict(boxes=takes_boxes(shape, tiles, lowered.device), tile=tilings[0].tile)
    config = convolution_config(shape, num_pixels, out.rows.dtype, lowered.device, **options)
    levels = []
    for (operator, weight, bias), tiling in zip(parts, tilings):
        residual = bound.schedule.residuals.get(operator)
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
    kind = BoxConvolutionLaunch if isinstance(config, BoxConfig) else ConvolutionLaunch
    options = dict(precision=lowered.precision, device=lowered.device)
    options["workspace"] = lowered.workspace(config, out.rows.device)
    launch = kind(shape, config, levels, **options)
    bound.convolutions.append(launch)
    return launch


def _bottleneck(bound, step):
    (block,) = step.operators
    middle, last, following = block.middle, block.last, block.following
    shape = BottleneckShape(
        in_channels=middle.weight.shape[1],
        middle=len(middle.weight),
        out_channels=len(last.weight),
        next_channels=len(following.weight) if following else 0,
        **dict(kernel=middle.kernel, stride=middle.stride[0], padding=middle.padding),
        dilation=middle.dilation,
        middle_relu=middle.activation is not None,
        relu=last.activation is not None,
        next_relu=following is not None and following.activation is not None,
        residual=last in bound.schedule.residuals,
    )
    lowered, tiling = bound.lowered, bound.tiling(last.output)
    out = bound.maps[last.output]
    launch = BottleneckLaunch(
        shape,
        bottleneck_config(shape, tiling.num_pixels, out.rows.dtype, lowered.device),
        x=bound.maps[middle.inputs[0]],
        weights=lowered.bottleneck(block),
        out=out,
        tiling=tiling,
        residual=bound.maps[bound.schedule.residuals[last][0]] if shape.residual else None,
        following=bound.maps[following.output] if following else None,
        precision=lowered.precision,
        device=lowered.device,
    )
    bound.convolutions.append(launch)
    return launch


def _transposed_convolution(bound, step):
    (op,) = step.operators
    options = dict(padding=op.padding, activation=op.activation)
    phases = transposed_phases(op.weight, groups=op.groups, stride=op.stride[0], **options)
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
    window = dict(kernel=op.kernel, padding=op.padding, dilation=op.dilation, stride=op.stride[0])
    maps = bound.maps[op.inputs[0]], bound.maps[op.output], bound.tiling(op.output)
    return PoolLaunch(*maps, kind=op.kind, device=bound.lowered.device, **window)


def _upsample(bound, step):
    (op,) = step.operators
    maps = bound.maps[op.inputs[0]], bound.maps[op.output], bound.tiling(op.output)
    return UpsampleLaunch(*maps, scale=op.scale, mode=op.mode, device=bound.lowered.device)


def _group_norm(bound, step):
    (op,) = step.operators
    x = bound.maps[op.inputs[0]]
    options = dict(groups=op.groups, normalize=(op.weight, op.bias, op.eps))
    options["device"] = bound.lowered.device
    statistics = StatisticsLaunch(x, bound.tiling(op.inputs[0]), bound.statistics(op), **options)
    apply = bound.copy(
        op.output, scale=statistics.scale, shift=statistics.shift, activation=op.activation
    )

    def run(blocks):
        statistics(blocks)
        apply(x.as_nchw(), blocks)

    return run


def _global_mean(bound, step):
    (op,) = step.operators
    x = bound.maps[op.inputs[0]]
    options = dict(groups=x.rows.shape[1], device=bound.lowered.device)
    statistics = StatisticsLaunch(x, bound.tiling(op.inputs[0]), bound.statistics(op), **options)
    result = statistics.scale.view(op.shape)
    bound.objects[op.output] = bound.caches.whole[op.output] = result
    return statistics


def _affine(bound, step):
    (op,) = step.operators
    copy = bound.copy(
        op.output, scale=op.scale.float(), shift=op.shift.float(), activation=op.activation
    )
    x = bound.tensor(op.inputs[0])
    return lambda blocks: copy(x, blocks)


def _pointwise(bound, step):
    """Runs the call on whole maps, and keeps its results for the active blocks."""
    (op,) = step.operators
    if call_name(op) == "cat":
        return _concatenation(bound, op)
    if op.output not in bound.maps:

        def evaluate(blocks):
            values = {index: bound.tensor(index) for index in op.inputs}
            bound.objects[op.output] = op.call.evaluate(values)

        return evaluate
    copy = bound.copy(op.output)

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
            options = {"device": bound.lowered.device}
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


BINDERS = {
    Affine: _affine,
    Bottleneck: _bottleneck,
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
