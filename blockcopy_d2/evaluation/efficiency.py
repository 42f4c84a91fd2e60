"""What a frame costs: multiply-accumulates that were executed, and seconds."""

import torch
from torch import nn

from blockcopy_d2.sparse import counts_itself

__all__ = ["EfficiencyMeter", "MacCounter"]


class MacCounter:
    """
    Counts the multiply-accumulates of the layers (convolutions and linear ones) that run as modules
    while it is open: heads on the proposals there are, the policy network, whole dense models. The
    layers of a block-sparse module are not among them inside ``block_sparse``, which counts them
    itself. Shapes only: the device is never waited for. Backward passes are not counted.

    Examples:
    ::
        with MacCounter(model) as counter:
            model(inputs)
        counter.macs
    """

    def __init__(self, model):
        """
        Args:
            model (nn.Module):
        """
        self.macs = 0
        self._model = model
        self._handles = []

    def __enter__(self):
        for module in self._model.modules():
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
            # Tracing a network for later runs its modules on example tensors.
            if not torch.compiler.is_compiling() and not counts_itself():
                self.macs += macs(module, inputs[0], output)

        return hook


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


class EfficiencyMeter:
    """Averages, over the frames of a run, of seconds per stage and multiply-accumulates."""

    def __init__(self):
        self.frames = 0
        self.macs = 0
        self.seconds = {}

    def add(self, seconds, macs):
        """
        Args:
            seconds (dict[str, float]): of one frame, per stage.
            macs (int):
        """
        self.frames += 1
        self.macs += macs
        for stage, value in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + value

    def merge(self, other):
        """Add what another process measured."""
        self.frames += other.frames
        self.macs += other.macs
        for stage, value in other.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + value

    @property
    def gmacs(self):
        """float: 1e9 multiply-accumulates per frame."""
        return self.macs / self.frames / 1e9

    @property
    def seconds_per_stage(self):
        """dict[str, float]: seconds per frame, averaged over all frames."""
        return {stage: value / self.frames for stage, value in self.seconds.items()}

    @property
    def seconds_per_frame(self):
        """float:"""
        return sum(self.seconds.values()) / self.frames
