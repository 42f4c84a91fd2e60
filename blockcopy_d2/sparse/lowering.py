"""Lowers a Program to launches in order and their buffers, for backends that write in place.

Shape shorthand: N streams, C channels, H x W pixels of a map, B block size.
"""

import dataclasses

from .fusion import (
    ConvolutionPair,
    fold_upsampling,
    fuse_bottlenecks,
    outputs_of,
    pair_convolutions,
)
from .program import Convolution, Densified, Pointwise
from .tracing import Ref

# Traced calls whose result is their input, or some of its channels: no work, the same memory.
_SAME = {"clone", "contiguous", "detach", "alias", "dropout"}
_SLICES = {"slice", "split", "split_with_sizes", "chunk"}
# Rows of scratch buffers start at multiples of this, so that wide loads stay aligned.
_ALIGNMENT = 256


@dataclasses.dataclass(eq=False)
class Step:
    """One launch: an operator, or several equal convolutions that do not depend on each other.

    Attributes:
        operators: in program order; ConvolutionPairs and Bottlenecks among them.
        reads: numbers of the values that they read.
    """

    operators: list
    reads: list

    @property
    def writes(self):
        return [index for operator in self.operators for index in outputs_of(operator)]


@dataclasses.dataclass
class Buffer:
    """Memory of one map and of the values that are channels of it.

    Attributes:
        value: program.Value that spans it.
        persistent: kept from frame to frame, so every stream has its own.
        offset: first byte in the scratch memory that all streams share; None if persistent.
    """

    value: object
    persistent: bool = False
    offset: int | None = None

    @property
    def nbytes(self):
        batch, channels, height, width = self.value.shape
        return batch * channels * height * width * self.value.dtype.itemsize


@dataclasses.dataclass
class Schedule:
    """
    Attributes:
        steps: Steps in order of execution.
        places: number of an aligned value -> (number of its buffer, first channel there).
        buffers: number -> Buffer.
        scratch_bytes: size of the scratch memory.
        residuals: Convolution -> (value, output pixels per pixel of it along an axis).
        lifted: numbers of the values that are lifted for TF32 products, see kernels/tf32.py.
    """

    steps: list
    places: dict
    buffers: dict
    scratch_bytes: int
    residuals: dict
    lifted: set


def lower(program, widest_bottleneck=0):
    """Decides the launches and memory of a program. Returns its Schedule.

    Args:
        program: Program.
        widest_bottleneck: middle channels of residual blocks that one launch can keep.

    Nearest upsampling that is only added to a convolution becomes part of it. Concatenations become
    buffers that their parts are written to. Slices are views.
    """
    operators, reads, residuals = fold_upsampling(program)
    parents = _aliases(program, operators)
    operators = pair_convolutions([op for op in operators if not _is_view(op)], reads, residuals)
    operators = fuse_bottlenecks(program, operators, reads, residuals, widest_bottleneck)
    lifted = _lifted_values(program, operators, reads, residuals, parents)
    steps = _order(program, operators, reads, residuals, lifted)
    used = {index for step in steps for index in [*step.reads, *step.writes]}
    used |= {output.index for output in program.outputs if isinstance(output, Ref)}
    places = {
        index: _resolve(parents, index)
        for index in used
        if program.values[index].stride is not None and program.values[index].shape is not None
    }
    buffers = _assign_buffers(program, places)
    scratch_bytes = _place_scratch(buffers, steps, places)
    return Schedule(steps, places, buffers, scratch_bytes, residuals, lifted)


# ------------------------------------------------------------------------ views


def call_name(operator):
    """Returns ATen's name of the call of a Pointwise operator, None for other operators."""
    if not isinstance(operator, Pointwise):
        return None
    schema = getattr(operator.call.target, "_schema", None)
    return schema.name.split("::")[1] if schema is not None else "_item"


def _is_view(operator):
    name = call_name(operator)
    if name == "slice":
        return operator.call.arguments["step"] == 1
    return name in _SAME or name in _SLICES or name == "_item"


def _aliases(program, operators):
    """Maps each value to (value, first channel): the one whose memory it is part of."""
    parents = {}
    sources = {operator.output: operator for operator in operators if _is_view(operator)}
    # These change in all blocks of a frame; a concatenation changes in the active ones only.
    own = {operator.output for operator in operators if isinstance(operator, Densified)}
    own |= set(program.inputs)
    for operator in operators:
        name = call_name(operator)
        arguments = operator.call.arguments if name else {}
        if name == "cat":
            start = 0
            for index in operator.inputs:
                value, whole = program.values[index], program.values[operator.output]
                free = index not in parents and index not in own
                if free and value.stride == whole.stride and value.dtype == whole.dtype:
                    parents[index] = (operator.output, start)
                start += value.shape[1]
        elif name in _SAME:
            parents[operator.output] = (operator.inputs[0], 0)
        elif name == "slice" and _is_view(operator):
            start = arguments["start"] or 0
            channels = program.values[operator.inputs[0]].shape[1]
            parents[operator.output] = (operator.inputs[0], start % channels if start else 0)
        elif name == "_item" and operator.inputs[0] in sources:
            split = sources[operator.inputs[0]]
            start = _split_start(program, split, arguments["item"])
            parents[operator.output] = (split.inputs[0], start)
    return parents


def _split_start(program, split, item):
    arguments = split.call.arguments
    name = call_name(split)
    if name == "split_with_sizes":
        return sum(arguments["split_sizes"][:item])
    if name == "chunk":
        channels = program.values[split.inputs[0]].shape[1]
        return item * -(-channels // arguments["chunks"])
    size = arguments["split_size"]
    return sum(size[:item]) if isinstance(size, (list, tuple)) else item * size


def _resolve(parents, index):
    start = 0
    while index in parents:
        index, offset = parents[index]
        start += offset
    return index, start


def _lifted_values(program, operators, reads, residuals, parents):
    """Returns the values that convolutions add to their results and that only convolutions read."""
    seen = {output.index for output in program.outputs if isinstance(output, Ref)}
    seen |= {*program.inputs, *parents, *(root for root, _ in parents.values())}
    for operator in operators:
        if not isinstance(operator, (Convolution, ConvolutionPair)):
            seen |= {*reads[operator], *outputs_of(operator)}
    return {index for index, _ in residuals.values()} - seen


# ------------------------------------------------------------------------ order


def _order(program, operators, reads, residuals, lifted):
    """Orders operators as Steps. Equal convolutions on several levels share one where they can."""
    steps, open_steps, producers, needs = [], {}, {}, {}
    views = {operator.output: operator for operator in program.operators if _is_view(operator)}

    def producing(index):
        """Steps that write value `index`, seen through views."""
        while index in views:
            index = views[index].inputs[0]
        return {producers[index]} if index in producers else set()

    def depends(on, step, seen):
        if on is step:
            return True
        seen.add(step)
        return any(depends(on, other, seen) for other in needs[step] if other not in seen)

    for operator in operators:
        before = set().union(*(producing(index) for index in reads[operator]))
        key = None if operator in residuals else _launch_key(program, operator, lifted)
        step = open_steps.get(key) if key is not None else None
        if step is not None and not any(depends(step, other, set()) for other in before):
            step.operators.append(operator)
            step.reads.extend(reads[operator])
            needs[step] |= before
        else:
            step = open_steps[key] = Step([operator], list(reads[operator]))
            needs[step] = before
            steps.append(step)
        producers.update(dict.fromkeys(outputs_of(operator), step))

    ordered, done = [], set()
    for step in steps:
        stack = [step]
        while stack:
            missing = [other for other in needs[stack[-1]] if other not in done]
            if missing:
                stack.extend(sorted(missing, key=steps.index))
                continue
            step = stack.pop()
            if step not in done:
                done.add(step)
                ordered.append(step)
    return ordered


def _launch_key(program, operator, lifted):
    """
    Returns equal keys for convolutions that one launch can run; None for those launched alone.
    """
    if isinstance(operator, ConvolutionPair):
        return tuple(_launch_key(program, op, lifted) for op in (operator.first, operator.second))
    if not isinstance(operator, Convolution):
        return None
    value = program.values[operator.output]
    window = operator.stride, operator.padding, operator.dilation, operator.groups
    blocks = max(value.stride // program.block_size, 1)
    written = operator.activation, value.dtype, operator.output in lifted
    return (tuple(operator.weight.shape), window, blocks, written)


# ------------------------------------------------------------------------ memory


def _assign_buffers(program, places):
    buffers = {}
    for index, (root, _) in places.items():
        buffer = buffers.setdefault(root, Buffer(program.values[root]))
        # Inputs may be maps of another module of the stream.
        buffer.persistent |= program.values[index].persistent or index in program.inputs
    return buffers


def _place_scratch(buffers, steps, places):
    """Gives buffers that live at different times the same memory; returns its size.

    First fit, largest first: a buffer goes to the lowest place that no other buffer alive at the
    same time takes.
    """
    lives = {}
    for position, step in enumerate(steps):
        for index in [*step.reads, *step.writes]:
            if index in places:
                root = places[index][0]
                first, _ = lives.get(root, (position, position))
                lives[root] = (first, position)
    placed = []
    scratch = [root for root in lives if not buffers[root].persistent]
    for root in sorted(scratch, key=lambda root: -buffers[root].nbytes):
        first, last = lives[root]
        size = -(-buffers[root].nbytes // _ALIGNMENT) * _ALIGNMENT
        offset = 0
        for start, end, begin, close in sorted(placed):
            if first <= close and begin <= last and offset < end and start < offset + size:
                offset = end
        buffers[root].offset = offset
        placed.append((offset, offset + size, first, last))
    return max((end for _, end, _, _ in placed), default=0)


def scratch_map(buffer, scratch):
    """Rows (N * H * W, C) of a scratch buffer in the scratch memory (uint8)."""
    batch, channels, height, width = buffer.value.shape
    memory = scratch[buffer.offset : buffer.offset + buffer.nbytes]
    return memory.view(buffer.value.dtype).view(batch * height * width, channels)
