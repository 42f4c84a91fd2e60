"""Notices when the weights of a module are no longer those folded into its programs."""

import itertools
import operator

import torch
from torch import nn

# Version numbers are unique over all modules.
_versions = itertools.count(1)
_version = operator.attrgetter("_version")
# Number of values compared in each tensor in main memory, evenly spaced.
_SAMPLES = 256


class WeightsWatch:
    """Notices changed weights of a module: modules, parameters or buffers replaced or written to.

    It compares identities, addresses and PyTorch's version counters, so it never waits for a
    device. `weight.mul_(2)` under torch.no_grad() is noticed, and so is `weight.data = ...`.
    PyTorch does not count writes through an alias such as `.data` or `.numpy()`, as in
    `weight.data.mul_(2)`. In main memory those are noticed by comparing 256 values of each tensor,
    evenly spaced; on other devices they are not.

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
        self._samples = ()

    def changed(self):
        """Returns whether anything has changed since the last call; True at the first one."""
        state = self._now()
        if _same(state, self._state):
            return False
        make_writable(self._module)
        modules = list(self._module.modules())
        self._children = [module._modules for module in modules if module._modules]
        self._owners = [d for m in modules for d in (m._parameters, m._buffers)]
        samples = map(_sample, self._tensors())
        self._samples = [sample for sample in samples if sample is not None]
        self._state = self._now()
        self.version = next(_versions)
        return True

    def forget(self):
        """Makes the next call report a change for any weights."""
        self._state = None

    def __reduce__(self):
        # A copy belongs to a copied module, whose weights it has not seen.
        return WeightsWatch, (self._module,)

    def _now(self):
        """(modules, tensors, counts, versions, addresses, samples); None before the first call."""
        if self._owners is None:
            return None
        children = [module for part in self._children for module in part.values()]
        tensors, counts = self._tensors(), list(map(len, self._owners))
        try:
            versions = list(map(_version, tensors))
        except RuntimeError:
            # A new inference tensor is a change.
            return None
        addresses = list(map(torch.Tensor.data_ptr, tensors))
        samples = [sample.tobytes() for sample in self._samples]
        return children, tensors, counts, versions, addresses, samples

    def _tensors(self):
        return [x for part in self._owners for x in part.values() if x is not None]


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


def _sample(tensor):
    """ndarray or None: some of the values of a tensor in main memory, as they are now."""
    if tensor.device.type != "cpu" or tensor.layout != torch.strided or not tensor.numel():
        return None
    if not torch.ops.aten.is_non_overlapping_and_dense(tensor):
        return None
    values = tensor.detach().as_strided((tensor.numel(),), (1,))
    # NumPy does not know bfloat16, so bytes are compared.
    values = values.view(torch.uint8).numpy().view(f"V{values.element_size()}")
    return values[:: -(-len(values) // _SAMPLES)]


@torch.inference_mode(False)
@torch.no_grad()
def make_writable(module):
    """Replaces tensors made under torch.inference_mode() by equal ones that count their versions
    and can be trained and written to. Tensors that modules share stay shared.
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
                    # Kept with its substitute, so that its id is not reused.
                    replaced[id(tensor)] = tensor, new
                tensors[name] = replaced[id(tensor)][1]
