"""Telling whether the weights of a module are still those that were folded into something."""

import itertools
import operator

import torch
from torch import nn

# Versions are numbers that no other module has had.
_versions = itertools.count(1)
_version = operator.attrgetter("_version")


class WeightsWatch:
    """Notices other weights of a module: modules, parameters or buffers replaced or written to.

    What is compared are identities, addresses and PyTorch's version counters, so that the device
    is never waited for and nothing is copied. `weight.mul_(2)` under torch.no_grad() is noticed,
    and so is `weight.data = ...`. What is written through the alias `.data`, as by
    `weight.data.mul_(2)`, counts nowhere in PyTorch and goes unnoticed.

    Attributes:
        version: a number that stands for the weights of the last call; 0 before the first one.
    """

    def __init__(self, module):
        """
        Args:
            module: nn.Module. Tensors of it that were made under torch.inference_mode() have no
                version counter: they are replaced by equal ones that have.
        """
        self.version = 0
        self._module = module
        self._children = self._owners = self._state = None

    def changed(self):
        """Whether anything is other than at the last call; True at the first one."""
        state = self._now()
        if _same(state, self._state):
            return False
        make_writable(self._module)
        modules = list(self._module.modules())
        self._children = [module._modules for module in modules if module._modules]
        self._owners = [d for m in modules for d in (m._parameters, m._buffers) if d]
        self._state = self._now()
        self.version = next(_versions)
        return True

    def forget(self):
        """Takes the weights of the next call for other ones, whatever they are."""
        self._state = None

    def __reduce__(self):
        # A copy belongs to a copied module, whose weights it has not seen.
        return WeightsWatch, (self._module,)

    def _now(self):
        """(modules, tensors, versions, addresses); None before the first call."""
        if self._owners is None:
            return None
        children = [module for part in self._children for module in part.values()]
        tensors = [x for part in self._owners for x in part.values() if x is not None]
        try:
            versions = list(map(_version, tensors))
        except RuntimeError:
            # An inference tensor has come, which is a change.
            return None
        return children, tensors, versions, list(map(torch.Tensor.data_ptr, tensors))


def _same(state, other):
    if state is None or other is None:
        return False
    (modules, tensors, *counts), (old_modules, old_tensors, *old_counts) = state, other
    return (
        counts == old_counts
        and len(modules) == len(old_modules)
        and all(map(operator.is_, modules, old_modules))
        and all(map(operator.is_, tensors, old_tensors))
    )


@torch.inference_mode(False)
@torch.no_grad()
def make_writable(module):
    """Replaces tensors that were made under torch.inference_mode() by equal ones that count their
    versions, and can be learned and written to anywhere. Tensors that modules share stay shared.
    """
    replaced = {}
    for owner in module.modules():
        for tensors in (owner._parameters, owner._buffers):
            for name, tensor in tensors.items():
                if tensor is None or not tensor.is_inference():
                    continue
                if id(tensor) not in replaced:
                    new = tensor.clone()
                    if isinstance(tensor, nn.Parameter):
                        new = nn.Parameter(new, requires_grad=tensor.requires_grad)
                    # Kept with its substitute, so that no other takes its id.
                    replaced[id(tensor)] = tensor, new
                tensors[name] = replaced[id(tensor)][1]
