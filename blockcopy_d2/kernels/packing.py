"""Copies of several tensors that are kept by one more copy."""

import itertools

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
        firsts = list(itertools.accumulate(sizes, initial=0))
        self._layout = [
            (first, first + x.nbytes, x.dtype, x.shape) for first, x in zip(firsts, tensors)
        ]
        self._memory = torch.zeros(firsts[-1], dtype=torch.uint8, device=tensors[0].device)
        self._copies = self._views(self._memory)

    def fill(self, tensors):
        """
        Args:
            tensors (sequence[Tensor]): tensors like the examples, which are copied.
        """
        copy_all(self._copies, tensors)

    def take(self):
        """
        Returns:
            list[Tensor]: the copies, in memory of their own.
        """
        return self._views(self._memory.clone())

    def _views(self, memory):
        return [memory[a:b].view(dtype).view(shape) for a, b, dtype, shape in self._layout]
