"""Traces an nn.Module into a flat list of functional ATen calls, by torch.export."""

import copy
import dataclasses
import threading
from typing import Any

import torch
import torch.utils._pytree as pytree

_VIEWS = ("slice", "select", "view", "reshape", "permute", "transpose", "split", "chunk", "unbind")


# Held while a network is traced, since torch.export changes global state.
TRACING = threading.RLock()


class TraceError(RuntimeError):
    """The module cannot be expressed as one fixed list of tensor operators."""


@dataclasses.dataclass(frozen=True)
class Ref:
    """An argument that is an input or the result of another call, by its number."""

    index: int


@dataclasses.dataclass
class Call:
    """One call of an ATen operator. `arguments` holds every argument of its schema by name."""

    index: int
    name: str
    target: Any
    arguments: dict
    shape: tuple
    dtype: torch.dtype | None

    @property
    def base_name(self):
        """conv2d for aten.conv2d.default, _item for a result of a call with several."""
        schema = getattr(self.target, "_schema", None)
        return schema.name.split("::")[1] if schema is not None else self.target.__name__

    def inputs(self):
        """Numbers of the values that the call reads."""
        leaves = pytree.tree_leaves(self.arguments, is_leaf=lambda x: isinstance(x, Ref))
        return [leaf.index for leaf in leaves if isinstance(leaf, Ref)]

    def evaluate(self, values):
        """Runs the call with `values[i]` for every Ref(i)."""
        arguments = pytree.tree_map(
            lambda x: values[x.index] if isinstance(x, Ref) else x,
            self.arguments,
            is_leaf=lambda x: isinstance(x, Ref),
        )
        return self.target(**arguments)


@dataclasses.dataclass
class TracedModule:
    """The calls of a module's forward pass, in order.

    `inputs` are the numbers of the tensor arguments in flattened order; `outputs` are Refs or
    constants, to be put together by `output_spec`. `shapes` and `dtypes` are those of every input.
    """

    inputs: list
    shapes: dict
    dtypes: dict
    calls: list
    outputs: list
    output_spec: Any


def trace(module, args, kwargs=None):
    """Traces the computation of `module(*args, **kwargs)`.

    Parameters and buffers appear as the module's own tensors, so that the traced calls follow
    their values. In-place operators become functional ones.

    Args:
        module: an nn.Module in eval mode.
        args, kwargs: example inputs; nested lists, tuples and dicts of tensors.

    Returns:
        TracedModule

    Raises:
        TraceError: if torch.export cannot trace the module, or it writes into views. Out-of-memory
            errors and interrupts are raised as they are.
    """
    args, kwargs = pytree.tree_map_only(torch.Tensor, _outside_inference_mode, (args, kwargs))
    try:
        with TRACING, torch.inference_mode(False), torch.no_grad():
            exported = torch.export.export(_stand_in(module), tuple(args), kwargs, strict=False)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise TraceError(
            f"{type(module).__name__} cannot be traced by torch.export: {error}"
        ) from error

    state = _owned_tensors(module, exported)
    placeholders = {}
    inputs, shapes, dtypes, calls = [], {}, {}, []
    values = {}  # fx node -> Ref or constant

    for spec in exported.graph_signature.input_specs:
        placeholders[spec.arg.name] = spec
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            spec = placeholders[node.name]
            if spec.target is not None:
                values[node] = state[spec.target]
            elif isinstance(node.meta.get("val"), torch.Tensor):
                values[node] = Ref(len(values))
                inputs.append(values[node].index)
                shapes[values[node].index] = _shape(node)
                dtypes[values[node].index] = _dtype(node)
            else:
                values[node] = node.meta.get("val")
        elif node.op == "call_function":
            result = Ref(len(values))
            calls.append(_call_of(node, result.index, values))
            values[node] = result
            if _is_in_place(node):
                written = values[node.args[0]]
                for other, value in values.items():
                    if isinstance(value, Ref) and value == written:
                        values[other] = result
        elif node.op == "output":
            outputs = [
                values[leaf] if isinstance(leaf, torch.fx.Node) else leaf for leaf in node.args[0]
            ]
        else:
            name = type(module).__name__
            raise TraceError(f"{name}: unexpected graph node {node.format_node()}")
    return TracedModule(inputs, shapes, dtypes, calls, outputs, exported.call_spec.out_spec)


def _stand_in(module):
    """
    Returns a module with the same tensors, to trace in its place. While a module is traced it holds
    placeholders instead of its tensors, and other threads may call it.
    """
    tensors = [*module.parameters(), *module.buffers()]
    try:
        return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
    except Exception:  # A module that holds something that cannot be copied is traced itself.
        return module


def _outside_inference_mode(tensor):
    with torch.inference_mode(False):
        return tensor.clone() if tensor.is_inference() else tensor


def _owned_tensors(module, exported):
    """Name -> tensor for everything the graph lifts into inputs."""
    tensors = dict(exported.constants)
    tensors.update(module.named_buffers())
    tensors.update(module.named_parameters(remove_duplicate=False))
    return {
        name: tensor.detach() if isinstance(tensor, torch.Tensor) else tensor
        for name, tensor in tensors.items()
    }


def _is_in_place(node):
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _call_of(node, index, values):
    target, arguments = node.target, {}
    if not isinstance(target, torch._ops.OpOverload):
        # operator.getitem of a call with several results.
        source, item = node.args
        arguments = {"results": values[source], "item": item}
        return Call(index, node.name, _item, arguments, _shape(node), _dtype(node))
    given = dict(zip((argument.name for argument in target._schema.arguments), node.args))
    given.update(node.kwargs)
    for argument in target._schema.arguments:
        value = given.get(argument.name, argument.default_value)
        arguments[argument.name] = torch.fx.node.map_arg(value, lambda n: values[n])
    if _is_in_place(node):
        name = target._schema.name.split("::")[1]
        written = node.args[0]
        if written.op == "call_function" and any(view in written.name for view in _VIEWS):
            raise TraceError(f"{node.format_node()} writes into a view of another tensor.")
        target = getattr(getattr(torch.ops.aten, name[:-1]), target._overloadname)
    return Call(index, node.name, target, arguments, _shape(node), _dtype(node))


def _item(results, item):
    return results[item]


def _shape(node):
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def _dtype(node):
    return getattr(node.meta.get("val"), "dtype", None)
