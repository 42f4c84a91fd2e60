"""Counting multiply-accumulates of what runs operator by operator."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class MacCount(TorchDispatchMode):
    """Counts those of PyTorch's own operators, by their shapes, in the thread that opens it.

    Attributes:
        macs: so far.
    """

    def __init__(self):
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        count = flop_registry.get(getattr(operator, "_overloadpacket", None))
        if count is None:
            parts = operator.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = operator(*args, **kwargs)
        if count is not None:
            self.macs += count(*args, **kwargs, out_val=result) // 2
        return result


def count_macs(function):
    """Multiply-accumulates of a call, by PyTorch's own operators: those that gradients go through.

    Args:
        function: without arguments.
    """
    with MacCount() as count, torch.enable_grad():
        function()
    return count.macs
