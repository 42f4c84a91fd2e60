"""Rules that turn calls into operators: one per kind of call.

A rule takes the planner and a Call. It returns the operator, either a new one or the one that the
call is fused into; None if the call does not run in blocks.

``docs/extending.md`` shows how to add one.

Shape shorthand: N streams, C channels, H x W pixels of a map at stride s, B block size.
"""

import dataclasses

import torch

from .program import (
    Activation,
    Affine,
    Convolution,
    GlobalMean,
    GroupNorm,
    Pointwise,
    Pool,
    TransposedConvolution,
    Upsample,
)
from .sliding_mean import sliding_mean
from .tracing import Ref

# Activations that fuse into the operator before them: their in-place form, and whether the result
# is never negative.
_ACTIVATIONS = {
    "relu": True,
    "relu6": True,
    "sigmoid": True,
    "hardtanh": False,
    "leaky_relu": False,
    "silu": False,
    "hardswish": False,
    "hardsigmoid": True,
    "elu": False,
}

# Calls whose output pixels depend on the same pixels of their inputs alone.
_ARITHMETIC = {"add", "sub", "mul", "div", "neg", "exp", "sqrt", "rsqrt", "pow", "abs"}
_LIMITS = {"maximum", "minimum", "clamp", "clamp_min", "clamp_max", "tanh", "gelu", "softplus"}
_UNCHANGED = {"clone", "contiguous", "detach", "alias", "dropout", "to"}
_POINTWISE = set(_ACTIVATIONS) | _ARITHMETIC | _LIMITS | _UNCHANGED

# Calls that are pointwise if their argument `dim` is the channels.
_PARTS = {"cat", "slice", "split", "split_with_sizes", "chunk"}
_REDUCTIONS = {"sum", "mean", "amax", "norm", "linalg_vector_norm"}
_CHANNELWISE = {"softmax", "log_softmax", "_softmax", "cumsum"} | _PARTS | _REDUCTIONS


def operator_for(planner, call):
    """Returns the operator of a call by its rule, or as a pointwise one; None if neither fits."""
    rule = _RULES.get(call.base_name)
    operator = rule(planner, call) if rule is not None else None
    return _pointwise(planner, call) if operator is None else operator


def _convolution(planner, call):
    a = call.arguments
    if isinstance(a["weight"], Ref) or isinstance(a["padding"], str):
        return None
    x = a["input"].index
    if not planner.aligned(x) or a["stride"][0] != a["stride"][-1]:
        return None
    window = [_pair(a[name]) for name in ("stride", "padding", "dilation")]
    operator = Convolution(
        call.name, [x], call.index, a["weight"], a["bias"], *window, groups=a["groups"]
    )
    return planner.emit(call, planner.values[x].stride * operator.stride[0], operator)


def _transposed_convolution(planner, call):
    a = call.arguments
    x = a["input"].index
    stride = _pair(a["stride"])
    if isinstance(a["weight"], Ref) or not planner.aligned(x) or stride[0] != stride[1]:
        return None
    if planner.values[x].stride > planner.block_size or _pair(a["dilation"]) != (1, 1):
        return None
    window = [_pair(a[name]) for name in ("stride", "padding", "output_padding", "dilation")]
    operator = TransposedConvolution(
        call.name, [x], call.index, a["weight"], a["bias"], *window, groups=a["groups"]
    )
    return planner.emit(call, planner.values[x].stride / stride[0], operator)


def _batch_norm(planner, call):
    a = call.arguments
    x = a["input"].index
    if a["training"] or not planner.aligned(x):
        return None
    scale = torch.rsqrt(a["running_var"].float() + a["eps"])
    scale = scale if a["weight"] is None else scale * a["weight"].float()
    shift = -a["running_mean"].float() * scale
    shift = shift if a["bias"] is None else shift + a["bias"].float()
    convolution = planner.fusable(x, Convolution)
    if convolution is None or convolution.residual is not None:
        operator = Affine(call.name, [x], call.index, scale, shift)
        return planner.emit(call, planner.values[x].stride, operator)
    weight, bias = convolution.weight, convolution.bias
    convolution.weight = (weight.float() * scale[:, None, None, None]).to(weight.dtype)
    if bias is not None:
        shift = shift + bias.float() * scale
    convolution.bias = shift.to(weight.dtype)
    return planner.fuse(call, convolution)


def _add_residual(planner, call):
    a = call.arguments
    operands = [a["self"], a["other"]]
    if a["alpha"] != 1 or not all(isinstance(operand, Ref) for operand in operands):
        return None
    x, y = (operand.index for operand in operands)
    if x == y or planner.values[x].shape != planner.values[y].shape:
        return None
    # If there are two candidates, take the only reader of its input. The other may be a shortcut,
    # which can share a launch with another reader of that input.
    candidates = [
        (-planner.users[operator.inputs[0]], planner.operators.index(operator), operator, other)
        for index, other in ((x, y), (y, x))
        if (operator := planner.fusable(index, Convolution)) and operator.residual is None
    ]
    if not candidates or not (planner.aligned(x) and planner.aligned(y)):
        return None
    *_, operator, other = max(candidates, key=lambda candidate: candidate[:2])
    operator.residual = other
    operator.inputs = [*operator.inputs, other]
    return planner.fuse(call, operator)


def _activation(planner, call):
    name = call.base_name
    x, *arguments = call.arguments.values()
    kinds = (Convolution, TransposedConvolution, GroupNorm, Affine)
    operator = planner.fusable(x.index, *kinds)
    if operator is None or not planner.aligned(x.index):
        return None
    operator = planner.fuse(call, operator)
    operator.activation = Activation(name, tuple(arguments))
    planner.values[call.index].nonnegative = _ACTIVATIONS[name]
    return operator


def _max_pool(planner, call):
    a = call.arguments
    return _pool(planner, call, "max", dilation=_pair(a["dilation"]))


def _average_pool(planner, call):
    a = call.arguments
    padded = _pair(a["padding"]) != (0, 0)
    if a["divisor_override"] is not None or (padded and not a["count_include_pad"]):
        return None
    x = a["self"].index
    kernel, size = _pair(a["kernel_size"]), planner.values[x].size
    if planner.aligned(x) and kernel == size and not padded:
        return GlobalMean(call.name, [x], call.index, call.shape)
    overlap = a["stride"] and _pair(a["stride"]) == (1, 1) and not padded
    if planner.aligned(x) and overlap and kernel[0] * kernel[1] > sum(size):
        arguments = {"x": a["self"], "kernel": kernel}
        call = dataclasses.replace(call, target=sliding_mean, arguments=arguments)
        return planner.densified(call)
    return _pool(planner, call, "avg")


def _adaptive_average_pool(planner, call):
    """One cell is the global mean; equal cells of whole pixels are an ordinary pool."""
    a = call.arguments
    cells, value = _pair(a["output_size"]), planner.values[a["self"].index]
    if cells == (1, 1):
        return _global_mean(planner, call)
    scale = value.size[0] // cells[0]
    if not planner.aligned(value.index) or value.size != (cells[0] * scale, cells[1] * scale):
        return None
    stride = value.stride * scale
    if planner.block_size % stride and stride % planner.block_size:
        return None
    operator = Pool(
        call.name, [value.index], call.index, "avg", (scale, scale), (scale, scale), (0, 0)
    )
    return planner.emit(call, stride, operator, value.nonnegative)


def _pool(planner, call, kind, **extra):
    a = call.arguments
    x = a["self"].index
    kernel = _pair(a["kernel_size"])
    stride = _pair(a["stride"]) if a["stride"] else kernel
    if a["ceil_mode"] or not planner.aligned(x) or stride[0] != stride[1]:
        return None
    operator = Pool(call.name, [x], call.index, kind, kernel, stride, _pair(a["padding"]), **extra)
    value = planner.values[x]
    return planner.emit(call, value.stride * stride[0], operator, value.nonnegative)


def _upsample(planner, call):
    a = call.arguments
    mode = "bilinear" if "bilinear" in call.base_name else "nearest"
    x = a["input" if "input" in a else "self"].index
    value = planner.values[x]
    if a.get("align_corners") or not planner.aligned(x):
        return None
    scale = call.shape[-1] // value.shape[-1]
    if tuple(extent * scale for extent in value.size) != tuple(call.shape[-2:]):
        return None
    if mode == "bilinear" and value.stride > planner.block_size:
        return None
    operator = Upsample(call.name, [x], call.index, mode, scale)
    return planner.emit(call, value.stride / scale, operator, value.nonnegative)


def _group_norm(planner, call):
    a = call.arguments
    x = a["input"].index
    if not planner.aligned(x):
        return None
    operator = GroupNorm(
        call.name, [x], call.index, a["num_groups"], a["weight"], a["bias"], a["eps"]
    )
    return planner.emit(call, planner.values[x].stride, operator)


def _global_mean(planner, call):
    a = call.arguments
    x = a["self"].index
    if not planner.aligned(x):
        return None
    if "output_size" in a:
        is_global = _pair(a["output_size"]) == (1, 1)
    else:
        dims = [dim % 4 for dim in a["dim"] or range(4)]
        is_global = sorted(dims) == [2, 3]
    return GlobalMean(call.name, [x], call.index, call.shape) if is_global else None


def _pointwise(planner, call):
    name = call.base_name
    indices = call.inputs()
    if name in _CHANNELWISE:
        dims = call.arguments["dim"]
        dims = dims if isinstance(dims, (list, tuple)) else [dims]
        if [dim % 4 for dim in dims if dim is not None] != [1]:
            return None
        if not call.arguments.get("keepdim", True):
            return None
    elif name == "_item":
        if not isinstance(planner.producers.get(indices[0]), Pointwise):
            return None
    elif name not in _POINTWISE:
        return None
    strides = {planner.values[index].stride for index in indices if planner.aligned(index)}
    if len(strides) != 1 or not all(map(planner.broadcastable, indices)):
        return None
    if not all(_is_per_channel(leaf) for leaf in call.arguments.values()):
        return None
    operator = Pointwise(call.name, indices, call.index, call)
    stride = strides.pop()
    if call.shape is None:  # several results, taken apart by _item
        planner.values[call.index].stride = stride
        return operator
    nonnegative = _ACTIVATIONS.get(name, False)
    return planner.emit(call, stride, operator, nonnegative)


def register_rule(name):
    """
    Registers the decorated rule for all calls of a name.

    Args:
        name (str): ATen's name of the call, such as "pixel_shuffle".
    """

    def register(rule):
        if name in _RULES:
            raise ValueError(f"There is a rule for {name} already.")
        _RULES[name] = rule
        return rule

    return register


_RULES = {
    "conv2d": _convolution,
    "conv_transpose2d": _transposed_convolution,
    "batch_norm": _batch_norm,
    "add": _add_residual,
    "max_pool2d": _max_pool,
    "avg_pool2d": _average_pool,
    "upsample_nearest2d": _upsample,
    "upsample_bilinear2d": _upsample,
    "group_norm": _group_norm,
    "adaptive_avg_pool2d": _adaptive_average_pool,
    "mean": _global_mean,
    **dict.fromkeys(_ACTIVATIONS, _activation),
}


def _pair(value):
    value = list(value) if isinstance(value, (list, tuple)) else [value]
    return (value[0], value[-1])


def _is_per_channel(argument):
    """Returns whether a constant argument of a pointwise call is the same for every pixel."""
    if isinstance(argument, (list, tuple)):
        return all(map(_is_per_channel, argument))
    if isinstance(argument, torch.Tensor):
        return argument.dim() == 0 or (argument.dim() >= 3 and argument.shape[-2:] == (1, 1))
    return True
