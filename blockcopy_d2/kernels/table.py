"""Tables of numbers that kernels read, with named columns. Needs Triton."""

import torch
import triton
import triton.language as tl

__all__ = ["column_numbers", "read_int", "table_of"]


def column_numbers(row_type):
    """
    Args:
        row_type (type[NamedTuple]): type of a row, with an int per column.

    Returns:
        NamedTuple: the number of each column, under its name. Kernels take it as a constant and
        read ``table_ptr + row * len(COLUMN) + COLUMN.name``.
    """
    return row_type(*range(len(row_type._fields)))


def table_of(rows, device):
    """
    Args:
        rows (list[NamedTuple]): rows of one type.
        device (torch.device):

    Returns:
        Tensor: int64 (rows, columns).
    """
    return torch.tensor([tuple(row) for row in rows], dtype=torch.int64, device=device)


@triton.jit
def read_int(ptr):
    """Reads a number that fits into 32 bits."""
    return tl.load(ptr).to(tl.int32)
