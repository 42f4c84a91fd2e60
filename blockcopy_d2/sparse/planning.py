"""Plans a Program for a TracedModule: strides, fusion, and the feature maps that must persist.

Shape shorthand: N streams, C channels, H x W pixels of a map at stride s, B block size.
"""

import logging

import torch

from .grid import check_stride
from .precision import cast_values, pack_weights
from .program import Densified, Program, Value
from .rules import operator_for
from .tracing import Ref

logger = logging.getLogger(__name__)

# Calls whose results are cells of their own: no maps of the frame even if the sizes agree.
_UNALIGNED = {"adaptive_avg_pool2d", "adaptive_max_pool2d", "sliding_mean"}


def plan(traced, *, block_size, image_size, dtype=None, module_name="module"):
    """Compiles a traced module.

    Args:
        traced: TracedModule.
        block_size: B in input pixels.
        image_size: (H, W) of the frame, which the strides refer to.
        dtype: precision to compute in; None for that of the traced module.
        module_name: for the log line that names operators without a block-sparse rule.

    Returns:
        Program

    Raises:
        ValueError: if B does not align with the stride of a feature map.
    """
    program = _Planner(traced, block_size, image_size, dtype).program()
    if program.densified:
        logger.info(
            "%s: no block-sparse rule for %s; run on full feature maps.",
            module_name,
            ", ".join(program.densified),
        )
    return program


class _Planner:
    def __init__(self, traced, block_size, image_size, dtype):
        self.traced = traced
        self.block_size = block_size
        self.image_size = image_size
        self.dtype = dtype
        self.values = {}
        self.operators = []
        self.producers = {}
        self.users = {}

    def program(self):
        traced = self.traced
        for call in traced.calls:
            for index in call.inputs():
                self.users[index] = self.users.get(index, 0) + 1
        outputs = [output.index for output in traced.outputs if isinstance(output, Ref)]
        for index in outputs:
            self.users[index] = self.users.get(index, 0) + 1
        for index, shape in traced.shapes.items():
            dtype = traced.dtypes[index]
            self.values[index] = Value(index, shape, dtype, self.stride_of(shape))
        for call in traced.calls:
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
            traced.inputs,
            self.values,
            self.operators,
            traced.outputs,
            traced.output_spec,
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

    def broadcastable(self, index):
        """Aligned, or one number per stream and channel."""
        shape = self.values[index].shape
        return self.aligned(index) or (len(shape) == 4 and tuple(shape[-2:]) == (1, 1))

    # ---------------------------------------------------------------- operators

    def add(self, call):
        self.values[call.index] = Value(call.index, call.shape, call.dtype)
        operator = operator_for(self, call)
        if operator is None:
            operator = self.densified(call)
        if operator is not self.producers.get(call.index):
            self.operators.append(operator)
            self.producers[call.index] = operator

    def densified(self, call):
        name = call.base_name
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
        """
        Makes `call` part of `operator`, which moves to the end, where all that it reads exists.
        """
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
        """
        Returns the operator that computes value `index`, if nothing else reads it and it is open.
        """
        operator = self.producers.get(index)
        if isinstance(operator, kinds) and self.users[index] == 1 and operator.activation is None:
            return operator
        return None

    # ---------------------------------------------------------------- memory

    def mark_persistent(self, outputs):
        """Marks values that are read outside the executed blocks of the frame."""
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
