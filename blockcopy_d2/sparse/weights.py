"""Notices when the weights of a module are no longer those folded into its programs."""

import itertools
import operator
import threading

import torch
from torch import nn

# Version numbers are unique over all modules.
_versions = itertools.count(1)
_version = operator.attrgetter("_version")
_address = torch.Tensor.data_ptr
chain = itertools.chain.from_iterable
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
        # For threads that ask at the same time.
        self.lock = threading.Lock()
        self._module = module
        self._dicts = self._views = self._values = self._sizes = self._tensors = self._samples = ()
        self._seen = None

    def changed(self):
        """Returns whether anything has changed since the last call; True at the first one."""
        if self._seen is not None and self._same_objects() and self._numbers() == self._seen:
            return False
        make_writable(self._module)
        modules = list(self._module.modules())
        # The children of every module, its parameters and its buffers.
        self._dicts = [module._modules for module in modules if module._modules]
        self._dicts += [d for m in modules for d in (m._parameters, m._buffers)]
        # Views of their values, which show what the dicts hold at any time.
        self._views = list(map(dict.values, self._dicts))
        self._values, self._sizes = list(chain(self._views)), list(map(len, self._dicts))
        self._tensors = [x for x in self._values if isinstance(x, torch.Tensor)]
        samples = map(_sample, self._tensors)
        self._samples = [sample for sample in samples if sample is not None]
        self._seen = self._numbers()
        self.version = next(_versions)
        return True

    def forget(self):
        """Makes the next call report a change for any weights."""
        self._seen = None

    def __reduce__(self):
        # A copy belongs to a copied module, whose weights it has not seen.
        return WeightsWatch, (self._module,)

    def _same_objects(self):
        return list(map(len, self._dicts)) == self._sizes and all(
            map(operator.is_, chain(self._views), self._values)
        )

    def _numbers(self):
        """Versions, addresses and samples of the tensors; None if one counts no versions."""
        try:
            versions = list(map(_version, self._tensors))
        except RuntimeError:
            # A tensor replaced by an inference tensor is a change.
            return None
        addresses = list(map(_address, self._tensors))
        return versions, addresses, [sample.tobytes() for sample in self._samples]


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
