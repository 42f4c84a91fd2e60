"""The precision that a program computes in: autocast's where it is on, else that of the weights."""

import dataclasses

import torch
import torch.utils._pytree as pytree

from .program import Convolution, Densified, Pointwise, TransposedConvolution
from .tracing import Ref


def autocast_dtype(device):
    """The dtype that autocast asks for on a device, None where it is off."""
    if not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def example_inputs(module, args, kwargs):
    """
    Returns the arguments in the precision of the module's weights, for a trace outside autocast.
    """
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
    return pytree.tree_map(lambda leaf: _cast(leaf, dtype), (args, kwargs))


def pack_weights(operators, dtype):
    """Puts weights into the memory format of the feature maps and into `dtype`, shared ones once.

    Normalizations are folded in before the rounding. Statistics and normalizations that could not
    be folded keep their precision.

    Args:
        operators: operators of a program, changed in place.
        dtype: None to leave the precision as it is.
    """
    packed = {}
    for operator in operators:
        if isinstance(operator, (Convolution, TransposedConvolution)):
            weight = operator.weight
            if weight.data_ptr() not in packed:
                packed[weight.data_ptr()] = _cast(weight, dtype).contiguous(
                    memory_format=torch.channels_last
                )
            operator.weight = packed[weight.data_ptr()]
            operator.bias = _cast(operator.bias, dtype)
        elif isinstance(operator, (Pointwise, Densified)) and dtype is not None:
            arguments = pytree.tree_map(
                lambda leaf: _cast(leaf, dtype),
                operator.call.arguments,
                is_leaf=lambda leaf: isinstance(leaf, Ref),
            )
            operator.call = dataclasses.replace(operator.call, arguments=arguments)


def cast_values(values, dtype):
    """Sets the dtype of floating-point values; None leaves them as they are."""
    for value in values:
        value.dtype = _cast(value.dtype, dtype)


def _cast(leaf, dtype):
    """A floating-point tensor or dtype in another precision; anything else as it is."""
    if dtype is None:
        return leaf
    if isinstance(leaf, torch.Tensor):
        return leaf.to(dtype) if leaf.is_floating_point() else leaf
    if isinstance(leaf, torch.dtype):
        return dtype if leaf.is_floating_point else leaf
    return leaf
