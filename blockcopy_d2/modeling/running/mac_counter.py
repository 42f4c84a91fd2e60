"""Counts multiply-accumulates of layers that run as modules."""

import threading

import torch
from torch import nn

from blockcopy_d2.sparse import BlockSparseModule, counts_itself

__all__ = ["MacCounter"]


class MacCounter:
    """
    Counts the multiply-accumulates of convolutions and linear layers that the current thread runs
    as modules while it is open: heads on their proposals, or whole dense models. Inside
    ``block_sparse`` it leaves out the layers of block-sparse modules, which are counted there. It
    uses shapes only, so it never waits for the device. Backward passes are not counted.

    Examples:
    ::
        with MacCounter(model) as counter:
            model(inputs)
        counter.macs
    """

    def __init__(self, model, *, outside_blocks=False):
        """
        Args:
            model (nn.Module):
            outside_blocks (bool): leave out the layers of block-sparse modules wherever they run.
        """
        self.macs = 0
        self._model = model
        self._outside_blocks = outside_blocks
        self._thread = None
        self._handles = []

    def __enter__(self):
        self._thread = threading.get_ident()
        modules = _outside(self._model, {}) if self._outside_blocks else self._model.modules()
        for module in modules:
            for layer, macs in _MACS.items():
                if isinstance(module, layer):
                    hook = self._counting(macs)
                    self._handles.append(module.register_forward_hook(hook))
        return self

    def __exit__(self, *exc):
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _counting(self, macs):
        def hook(module, inputs, output):
            # Capturing a network for later runs its modules on example tensors.
            if torch.compiler.is_compiling() or counts_itself():
                return
            # Other threads may run the same layers.
            if threading.get_ident() == self._thread:
                self.macs += macs(module, inputs[0], output)

        return hook


def _outside(module, found):
    """dict: ``found`` with the modules that are in no block-sparse module as its keys."""
    if module not in found and not isinstance(module, BlockSparseModule):
        found[module] = None
        for child in module.children():
            _outside(child, found)
    return found


def _conv_macs(module, x, y):
    # Every output is a sum over one kernel window of its group's input channels.
    return y.numel() * module.weight[0].numel()


def _conv_transpose_macs(module, x, y):
    # Every input is spread over one kernel window of its group's output channels.
    return x.numel() * module.weight[0].numel()


def _linear_macs(module, x, y):
    return y.numel() * module.in_features


_MACS = {
    nn.Conv2d: _conv_macs,
    nn.ConvTranspose2d: _conv_transpose_macs,
    nn.Linear: _linear_macs,
}
