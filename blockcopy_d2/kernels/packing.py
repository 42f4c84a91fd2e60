"""Copies of several tensors that are kept by one more copy."""

import itertools
from collections.abc import Sequence

import torch

from .copying import copy_all

__all__ = ["PackedCopies"]

# Bytes; any kernel may read the copies.
_ALIGNMENT = 64


class PackedCopies:
    """
    Copies of several tensors in one piece of memory. Filling it can be part of a CUDA graph; each
    of its launches costs less there than a copy of one tensor from the host.
    """

    def __init__(self, tensors):
        """
        Args:
            tensors (sequence[Tensor]): tensors of one device, as examples.
        """
        sizes = [-(-x.nbytes // _ALIGNMENT) * _ALIGNMENT for x in tensors]
        *firsts, end = itertools.accumulate(sizes, initial=0)
        self._layout = [
            (x.dtype, x.shape, torch.empty(x.shape, device="meta").stride(), first // x.itemsize)
            for x, first in zip(tensors, firsts, strict=True)
        ]
        self._memory = torch.zeros(end, dtype=torch.uint8, device=tensors[0].device)
        self._copies = list(_Views(self._memory, self._layout))

    def fill(self, tensors):
        """
        Args:
            tensors (sequence[Tensor]): tensors like the examples, which are copied.
        """
        copy_all(self._copies, tensors)

    def take(self):
        """
        Returns:
            Sequence[Tensor]: the copies as they are now, in memory of their own.
        """
        return _Views(self._memory.clone(), self._layout)


class _Views(Sequence):
    """Tensors in one piece of memory, each made when it is asked for, since that takes long."""

    def __init__(self, memory, layout):
        self._layout, self._memories = layout, {memory.dtype: memory}

    def __len__(self):
        return len(self._layout)

    def __getitem__(self, index):
        dtype, shape, stride, first = self._layout[index]
        memory = self._memories.get(dtype)
        if memory is None:
            memory = self._memories[dtype] = self._memories[torch.uint8].view(dtype)
        return memory.as_strided(shape, stride, first)
