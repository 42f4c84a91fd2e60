"""Counts multiply-accumulates of networks that run operator by operator."""

import collections

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry

aten = torch.ops.aten


def _convolution_flops(x, weight, *args, out_val, **kwargs):
    return conv_flop_count(x.shape, weight.shape, out_val.shape)


# PyTorch does not count layers that end with a ReLU in the same launch.
_WITH_RELU = {
    aten._addmm_activation: flop_registry[aten.addmm],
    aten.cudnn_convolution_relu: _convolution_flops,
}
_FLOPS = collections.ChainMap(_WITH_RELU, flop_registry)


class MacCount(TorchDispatchMode):
    """Counts the multiply-accumulates of PyTorch's own operators by their shapes, in this thread.

    Attributes:
        macs: so far.
    """

    def __init__(self):
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        count = _FLOPS.get(getattr(operator, "_overloadpacket", None))
        if count is None:
            parts = operator.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = operator(*args, **kwargs)
        if count is not None:
            self.macs += count(*args, **kwargs, out_val=result) // 2
        return result


def count_macs(function):
    """Returns the multiply-accumulates of a call, made by differentiable PyTorch operators.

    Args:
        function: without arguments.
    """
    with MacCount() as count, torch.enable_grad():
        function()
    return count.macs
