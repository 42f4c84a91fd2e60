"""CapturedModule -> Program: strides, fusion, and which feature maps must persist.

Shape shorthand: N streams, C channels, H x W pixels of a map at stride s, B block size.
"""

import dataclasses
import logging

import torch

from .capture import Ref
from .grid import check_stride
from .precision import cast_values, pack_weights
from .program import (
    Activation,
    Affine,
    Convolution,
    Densified,
    GlobalMean,
    GroupNorm,
    Pointwise,
    Pool,
    Program,
    TransposedConvolution,
    Upsample,
    Value,
)
from .sliding_mean import sliding_mean

logger = logging.getLogger(__name__)
aten = torch.ops.aten

# Activations that fuse into the operator before them, as far as their result is concerned
# (in place), and whether the result is never negative.
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

# Calls whose output pixel depends on the same pixel of their inputs alone.
_POINTWISE = set(_ACTIVATIONS) | {
    "add", "sub", "mul", "div", "neg", "exp", "sqrt", "rsqrt", "pow", "abs", "maximum", "minimum",
    "clamp", "clamp_min", "clamp_max", "tanh", "gelu", "softplus", "clone", "contiguous", "detach",
    "alias", "dropout", "to",
}  # fmt: skip

# Calls that are pointwise when they work along the channels.
_CHANNELWISE = {
    "cat": "dim", "slice": "dim", "split": "dim", "split_with_sizes": "dim", "chunk": "dim",
    "softmax": "dim", "log_softmax": "dim", "_softmax": "dim", "linalg_vector_norm": "dim",
    "sum": "dim", "mean": "dim", "amax": "dim", "norm": "dim", "cumsum": "dim",
}  # fmt: skip

# Calls whose results are cells of their own: no maps of the frame even where their sizes agree.
_UNALIGNED = {"adaptive_avg_pool2d", "adaptive_max_pool2d", "sliding_mean"}


def plan(captured, *, block_size, image_size, dtype=None, module_name="module"):
    """Compiles a captured module.

    Args:
        captured: CapturedModule.
        block_size: B in input pixels.
        image_size: (H, W) of the frame, which the strides refer to.
        dtype: what to compute in; None for the precision of the captured module.
        module_name: for the log line that names operators without a block-sparse rule.

    Returns:
        Program

    Raises:
        ValueError: if B does not align with the stride of a feature map.
    """
    program = _Planner(captured, block_size, image_size, dtype).program()
    if program.densified:
        logger.info(
            "%s: no block-sparse rule for %s; run on full feature maps.",
            module_name,
            ", ".join(program.densified),
        )
    return program


class _Planner:
    def __init__(self, captured, block_size, image_size, dtype):
        self.captured = captured
        self.block_size = block_size
        self.image_size = image_size
        self.dtype = dtype
        self.values = {}
        self.operators = []
        self.producers = {}
        self.users = {}

    def program(self):
        captured = self.captured
        for call in captured.calls:
            for index in call.inputs():
                self.users[index] = self.users.get(index, 0) + 1
        outputs = [output.index for output in captured.outputs if isinstance(output, Ref)]
        for index in outputs:
            self.users[index] = self.users.get(index, 0) + 1
        for index, shape in captured.shapes.items():
            dtype = captured.dtypes[index]
            self.values[index] = Value(index, shape, dtype, self.stride_of(shape))
        for call in captured.calls:
            self.add(call)
        self.mark_persistent(outputs)
        for value in self.values.values():
            if value.stride is not None:
                check_stride(self.block_size, value.stride)
        last_use = {}
        for position, operator in enumerate(self.operators):
            for index in operator.inputs:
                last_use[index] = position
        pack_weights(self.operators, self.dtype)
        cast_values(self.values.values(), self.dtype)
        densified = [op.name for op in self.operators if isinstance(op, Densified)]
        return Program(
            captured.inputs,
            self.values,
            self.operators,
            captured.outputs,
            captured.output_spec,
            last_use,
            densified,
            self.block_size,
        )

    # ---------------------------------------------------------------- strides

    def stride_of(self, shape, hint=None):
        """The stride at which a map of `shape` is aligned with the frame; None if at none."""
        if shape is None or len(shape) != 4:
            return None
        strides = [hint] if hint else [2**power for power in range(11)]
        for stride in strides:
            if tuple(-(-extent // stride) for extent in self.image_size) == tuple(shape[-2:]):
                return stride
        return None

    def aligned(self, index):
        return self.values[index].stride is not None

    # ---------------------------------------------------------------- operators

    def add(self, call):
        self.values[call.index] = Value(call.index, call.shape, call.dtype)
        rule = _RULES.get(_base_name(call))
        operator = rule(self, call) if rule is not None else None
        if operator is None:
            operator = self.pointwise(call)
        if operator is None:
            operator = self.densified(call)
        if operator is not self.producers.get(call.index):
            self.operators.append(operator)
            self.producers[call.index] = operator

    def densified(self, call):
        name = _base_name(call)
        follows = name not in _UNALIGNED and any(map(self.aligned, call.inputs()))
        if follows or name.startswith("upsample"):
            self.values[call.index].stride = self.stride_of(call.shape)
        weight = call.arguments.get("weight") if name == "conv2d" else None
        macs = weight.numel() if isinstance(weight, torch.Tensor) else 0
        return Densified(call.name, call.inputs(), call.index, call, macs_per_pixel=macs)

    def emit(self, call, stride, operator, nonnegative=False):
        """Accepts `operator` for `call` if its result is an aligned map at `stride`."""
        if stride != int(stride) or self.stride_of(call.shape, hint=int(stride)) is None:
            return None
        value = self.values[call.index]
        value.stride, value.nonnegative = int(stride), nonnegative
        return operator

    def fuse(self, call, operator):
        """Makes `call` part of `operator`, which moves to the end: all it reads exists by now."""
        old = self.values.pop(operator.output)
        self.producers.pop(operator.output)
        value = self.values[call.index]
        value.stride, value.nonnegative = old.stride, False
        operator.output = call.index
        self.operators.remove(operator)
        self.operators.append(operator)
        self.producers[call.index] = operator
        return operator

    def fusable(self, index, *kinds):
        """The operator that computes value `index`, if nothing else reads it and it is open."""
        operator = self.producers.get(index)
        if isinstance(operator, kinds) and self.users[index] == 1 and operator.activation is None:
            return operator
        return None

    def convolution(self, call):
        a = call.arguments
        if isinstance(a["weight"], Ref) or isinstance(a["padding"], str):
            return None
        x = a["input"].index
        if not self.aligned(x) or a["stride"][0] != a["stride"][-1]:
            return None
        operator = Convolution(
            call.name, [x], call.index, a["weight"], a["bias"], _pair(a["stride"]),
            _pair(a["padding"]), _pair(a["dilation"]), a["groups"],
        )  # fmt: skip
        return self.emit(call, self.values[x].stride * operator.stride[0], operator)

    def transposed_convolution(self, call):
        a = call.arguments
        x = a["input"].index
        stride = _pair(a["stride"])
        if isinstance(a["weight"], Ref) or not self.aligned(x) or stride[0] != stride[1]:
            return None
        if self.values[x].stride > self.block_size or _pair(a["dilation"]) != (1, 1):
            return None
        operator = TransposedConvolution(
            call.name, [x], call.index, a["weight"], a["bias"], stride, _pair(a["padding"]),
            _pair(a["output_padding"]), (1, 1), a["groups"],
        )  # fmt: skip
        return self.emit(call, self.values[x].stride / stride[0], operator)

    def batch_norm(self, call):
        a = call.arguments
        x = a["input"].index
        if a["training"] or not self.aligned(x):
            return None
        scale = torch.rsqrt(a["running_var"].float() + a["eps"])
        scale = scale if a["weight"] is None else scale * a["weight"].float()
        shift = -a["running_mean"].float() * scale
        shift = shift if a["bias"] is None else shift + a["bias"].float()
        convolution = self.fusable(x, Convolution)
        if convolution is None or convolution.residual is not None:
            operator = Affine(call.name, [x], call.index, scale, shift)
            return self.emit(call, self.values[x].stride, operator)
        weight, bias = convolution.weight, convolution.bias
        convolution.weight = (weight.float() * scale[:, None, None, None]).to(weight.dtype)
        if bias is not None:
            shift = shift + bias.float() * scale
        convolution.bias = shift.to(weight.dtype)
        return self.fuse(call, convolution)

    def add_residual(self, call):
        a = call.arguments
        operands = [a["self"], a["other"]]
        if a["alpha"] != 1 or not all(isinstance(operand, Ref) for operand in operands):
            return None
        x, y = (operand.index for operand in operands)
        if x == y or self.values[x].shape != self.values[y].shape:
            return None
        # Of two candidates the one that nothing but itself reads the input of: the other may be
        # a shortcut, which can share a launch with what reads the same input.
        candidates = [
            (-self.users[operator.inputs[0]], self.operators.index(operator), operator, other)
            for index, other in ((x, y), (y, x))
            if (operator := self.fusable(index, Convolution)) and operator.residual is None
        ]
        if not candidates or not (self.aligned(x) and self.aligned(y)):
            return None
        *_, operator, other = max(candidates, key=lambda candidate: candidate[:2])
        operator.residual = other
        operator.inputs = [*operator.inputs, other]
        return self.fuse(call, operator)

    def activation(self, call):
        name = _base_name(call)
        x, *arguments = call.arguments.values()
        kinds = (Convolution, TransposedConvolution, GroupNorm, Affine)
        operator = self.fusable(x.index, *kinds)
        if operator is None or not self.aligned(x.index):
            return None
        operator = self.fuse(call, operator)
        operator.activation = Activation(name, tuple(arguments))
        self.values[call.index].nonnegative = _ACTIVATIONS[name]
        return operator

    def max_pool(self, call):
        a = call.arguments
        return self.pool(call, "max", dilation=_pair(a["dilation"]))

    def average_pool(self, call):
        a = call.arguments
        padded = _pair(a["padding"]) != (0, 0)
        if a["divisor_override"] is not None or (padded and not a["count_include_pad"]):
            return None
        x = a["self"].index
        kernel, size = _pair(a["kernel_size"]), self.values[x].size
        if self.aligned(x) and kernel == size and not padded:
            return GlobalMean(call.name, [x], call.index, call.shape)
        overlap = a["stride"] and _pair(a["stride"]) == (1, 1) and not padded
        if self.aligned(x) and overlap and kernel[0] * kernel[1] > sum(size):
            arguments = {"x": a["self"], "kernel": kernel}
            call = dataclasses.replace(call, target=sliding_mean, arguments=arguments)
            return self.densified(call)
        return self.pool(call, "avg")

    def adaptive_average_pool(self, call):
        """One cell is the global mean; equal cells of whole pixels are an ordinary pool."""
        a = call.arguments
        cells, value = _pair(a["output_size"]), self.values[a["self"].index]
        if cells == (1, 1):
            return self.global_mean(call)
        scale = value.size[0] // cells[0]
        if not self.aligned(value.index) or value.size != (cells[0] * scale, cells[1] * scale):
            return None
        stride = value.stride * scale
        if self.block_size % stride and stride % self.block_size:
            return None
        operator = Pool(
            call.name, [value.index], call.index, "avg", (scale, scale), (scale, scale), (0, 0)
        )
        return self.emit(call, stride, operator, value.nonnegative)

    def pool(self, call, kind, **extra):
        a = call.arguments
        x = a["self"].index
        kernel = _pair(a["kernel_size"])
        stride = _pair(a["stride"]) if a["stride"] else kernel
        if a["ceil_mode"] or not self.aligned(x) or stride[0] != stride[1]:
            return None
        operator = Pool(
            call.name, [x], call.index, kind, kernel, stride, _pair(a["padding"]), **extra
        )
        value = self.values[x]
        return self.emit(call, value.stride * stride[0], operator, value.nonnegative)

    def upsample(self, call):
        a = call.arguments
        mode = "bilinear" if "bilinear" in _base_name(call) else "nearest"
        x = a["input" if "input" in a else "self"].index
        value = self.values[x]
        if a.get("align_corners") or not self.aligned(x):
            return None
        scale = call.shape[-1] // value.shape[-1]
        if tuple(extent * scale for extent in value.size) != tuple(call.shape[-2:]):
            return None
        if mode == "bilinear" and value.stride > self.block_size:
            return None
        operator = Upsample(call.name, [x], call.index, mode, scale)
        return self.emit(call, value.stride / scale, operator, value.nonnegative)

    def group_norm(self, call):
        a = call.arguments
        x = a["input"].index
        if not self.aligned(x):
            return None
        operator = GroupNorm(
            call.name, [x], call.index, a["num_groups"], a["weight"], a["bias"], a["eps"]
        )
        return self.emit(call, self.values[x].stride, operator)

    def global_mean(self, call):
        a = call.arguments
        x = a["self"].index
        if not self.aligned(x):
            return None
        if "output_size" in a:
            is_global = _pair(a["output_size"]) == (1, 1)
        else:
            dims = [dim % 4 for dim in a["dim"] or range(4)]
            is_global = sorted(dims) == [2, 3]
        return GlobalMean(call.name, [x], call.index, call.shape) if is_global else None

    def pointwise(self, call):
        name = _base_name(call)
        indices = call.inputs()
        if name in _CHANNELWISE:
            dims = call.arguments[_CHANNELWISE[name]]
            dims = dims if isinstance(dims, (list, tuple)) else [dims]
            if [dim % 4 for dim in dims if dim is not None] != [1]:
                return None
            if not call.arguments.get("keepdim", True):
                return None
        elif name == "_item":
            if not isinstance(self.producers.get(indices[0]), Pointwise):
                return None
        elif name not in _POINTWISE:
            return None
        strides = {self.values[index].stride for index in indices if self.aligned(index)}
        if len(strides) != 1 or not all(map(self.broadcastable, indices)):
            return None
        if not all(_is_per_channel(leaf) for leaf in call.arguments.values()):
            return None
        operator = Pointwise(call.name, indices, call.index, call)
        stride = strides.pop()
        if call.shape is None:  # several results, taken apart by _item
            self.values[call.index].stride = stride
            return operator
        nonnegative = _ACTIVATIONS.get(name, False)
        return self.emit(call, stride, operator, nonnegative)

    def broadcastable(self, index):
        """Aligned, or one number per stream and channel."""
        shape = self.values[index].shape
        return self.aligned(index) or (len(shape) == 4 and tuple(shape[-2:]) == (1, 1))

    # ---------------------------------------------------------------- memory

    def mark_persistent(self, outputs):
        """Values that something reads outside the executed blocks of the frame."""
        for index in outputs:
            self.values[index].persistent = self.aligned(index)
        for operator in self.operators:
            target = self.values[operator.output]
            for index in operator.inputs:
                value = self.values[index]
                if value.stride is None:
                    continue
                beyond = operator.has_halo and index == operator.inputs[0]
                # Above the block size, a pixel stands for several blocks: other pixels are active.
                crosses = target.stride is not None and (
                    max(target.stride // self.block_size, 1)
                    != max(value.stride // self.block_size, 1)
                )
                if beyond or crosses or isinstance(operator, Densified):
                    value.persistent = True
            if isinstance(operator, Densified) and target.stride is not None:
                target.persistent = True


_RULES = {
    "conv2d": _Planner.convolution,
    "conv_transpose2d": _Planner.transposed_convolution,
    "batch_norm": _Planner.batch_norm,
    "add": _Planner.add_residual,
    "max_pool2d": _Planner.max_pool,
    "avg_pool2d": _Planner.average_pool,
    "upsample_nearest2d": _Planner.upsample,
    "upsample_bilinear2d": _Planner.upsample,
    "group_norm": _Planner.group_norm,
    "adaptive_avg_pool2d": _Planner.adaptive_average_pool,
    "mean": _Planner.global_mean,
    **dict.fromkeys(_ACTIVATIONS, _Planner.activation),
}


def _base_name(call):
    """conv2d for aten.conv2d.default, _item for a result of a call with several."""
    schema = getattr(call.target, "_schema", None)
    return schema.name.split("::")[1] if schema is not None else call.target.__name__


def _pair(value):
    value = list(value) if isinstance(value, (list, tuple)) else [value]
    return (value[0], value[-1])


def _is_per_channel(argument):
    """Whether a constant argument of a pointwise call is the same for every pixel."""
    if isinstance(argument, (list, tuple)):
        return all(map(_is_per_channel, argument))
    if isinstance(argument, torch.Tensor):
        return argument.dim() == 0 or (argument.dim() >= 3 and argument.shape[-2:] == (1, 1))
    return True
