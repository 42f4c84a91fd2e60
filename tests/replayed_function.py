"""CUDA graphs, imitated on a CPU: a replay keeps and overwrites the same memory."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["ReplayedFunction"]


class ReplayedFunction:
    """
    Stands for a :class:`CapturedFunction` on a CPU. It captures the operators of a call with their
    tensors; a replay does the same to the same tensors, and no Python. Memory of a captured call
    lasts until one that was captured before it in the same pool is replayed; from then on it is
    NaN, as if the memory that they share were in other use.
    """

    def __init__(self, *, generators=(), pool=None):
        """
        Args:
            generators: not needed here.
            pool (list[ReplayedFunction]): those captured, the first one first.
        """
        self.calls = 0
        self._pool = pool
        self._operators = None

    def capture(self, function):
        self._operators = _Operators()
        with self._operators:
            function()
        self._operators.undo()
        self._pool.append(self)

    @torch.no_grad()
    def __call__(self, function):
        self.calls += 1
        if self._operators is None:
            function()
            return
        for later in self._pool[self._pool.index(self) + 1 :]:
            later._operators.spoil()
        self._operators.replay()


class _Operators(TorchDispatchMode):
    """Those that run while it is open."""

    def __init__(self):
        super().__init__()
        self._calls, self._before = [], []
        # Address of memory -> tensor.
        self._own, self._given = {}, {}

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        waits = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
        assert not waits & set(operator.tags), f"{operator} waits for the device"
        inputs = _tensors((args, kwargs))
        for tensor in inputs:
            address = tensor.untyped_storage().data_ptr()
            if address not in self._own:
                self._given[address] = tensor
                if operator._schema.is_mutable:
                    self._before.append((tensor.detach(), tensor.detach().clone()))
        results = operator(*args, **kwargs)
        for tensor in _tensors(results):
            address = tensor.untyped_storage().data_ptr()
            if address not in self._given:
                # Kept alive, so that no other tensor gets its address.
                self._own.setdefault(address, tensor)
        self._calls.append((operator, args, kwargs, results))
        return results

    def undo(self):
        for tensor, value in reversed(self._before):
            tensor.copy_(value)

    def spoil(self):
        for tensor in self._own.values():
            if tensor.is_floating_point():
                tensor.detach().fill_(torch.nan)

    def replay(self):
        for operator, args, kwargs, results in self._calls:
            again = operator(*args, **kwargs)
            for result, value in zip(_tensors(results), _tensors(again), strict=True):
                if result.data_ptr() != value.data_ptr():
                    result.detach().copy_(value)


def _tensors(tree):
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]
