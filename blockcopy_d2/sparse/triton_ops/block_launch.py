"""Launches on the active blocks of a frame."""

import torch

from blockcopy_d2.kernels.launch import Launch

__all__ = ["BlockLaunch"]


class BlockLaunch(Launch):
    """
    A kernel bound to its operands; calling it with a BlockList runs the active blocks.

    The kernel takes the list first: `blocks_ptr`, `count_ptr`. One with a constant SETTLED begins
    with count_blocks() and is given whether the list is settled.
    """

    def __init__(self, kernel, grid, arguments, constants):
        super().__init__(kernel, grid, arguments, constants)
        self._reads_ahead = "SETTLED" in kernel.arg_names

    def __call__(self, blocks):
        """
        Args:
            blocks (BlockList):
        """
        first, constants = (blocks.blocks, blocks.count), self.constants
        if self._reads_ahead:
            self._launch(*first, *self.arguments, **constants, SETTLED=blocks.settled)
        else:
            self._launch(*first, *self.arguments, **constants)

    def signature(self):
        integer = torch.empty(0, dtype=torch.int32)
        arguments, constants = super().signature(integer, integer)
        return arguments, {**constants, "SETTLED": True} if self._reads_ahead else constants
