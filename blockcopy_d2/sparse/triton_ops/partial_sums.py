"""Reductions that several programs share.

When too few tiles are active to fill the GPU, the reduction of each is split over several programs,
as many as the active count asks for. The last to arrive adds the parts, always in the same order,
so that equal inputs give equal outputs.
"""

import torch
import triton
import triton.language as tl

# Tiles per multiprocessor whose reductions may be split at a time.
_TILES_PER_SM = 4


@triton.jit
def number_of_splits(tiles, max_splits, programs):
    """
    Returns the parts to split the reduction of each of `tiles` into, so that `programs` are busy.
    """
    return tl.minimum(tl.maximum(programs // tl.maximum(tiles, 1), 1), max_splits)


@triton.jit
def add_parts(acc, workspace, tile, split, splits, SIZE: tl.constexpr):
    """(whether this is the last part of a tile to arrive, then with the sum of all its parts).

    `acc` (ROWS, COLUMNS) is part `split` of `splits`; no part of the launch is larger than SIZE.
    """
    ROWS: tl.constexpr = acc.shape[0]
    COLUMNS: tl.constexpr = acc.shape[1]
    workspace_ptr, arrivals_ptr = workspace
    complete = True
    if splits > 1:
        part = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        parts = workspace_ptr + tile * splits * SIZE + part
        tl.store(parts + split * SIZE, acc)
        tl.debug_barrier()  # all of the part is written before it is announced
        arrived = tl.atomic_add(arrivals_ptr + tile, 1, sem="acq_rel")
        complete = arrived == splits - 1
        if complete:
            acc = tl.zeros((ROWS, COLUMNS), tl.float32)
            # Unrolled, so that several parts are loaded at a time.
            for other in tl.range(0, splits, loop_unroll_factor=4):
                acc += tl.load(parts + other * SIZE, cache_modifier=".cg")
            tl.store(arrivals_ptr + tile, 0)
    return complete, acc


class Workspace:
    """Partial sums of split reductions, and how many of each tile have arrived (zero at rest)."""

    def __init__(self, size, num_sms, device):
        self.sums = torch.empty(size, dtype=torch.float32, device=device)
        self.arrivals = torch.zeros(_TILES_PER_SM * num_sms, dtype=torch.int32, device=device)

    @property
    def operand(self):
        """Arguments of kernels."""
        return self.sums, self.arrivals


def split_programs(config, num_sms):
    """Programs that may share the reductions of a launch with this config."""
    return min(max(config.per_sm, 1), _TILES_PER_SM) * num_sms


def workspace_size(config, num_sms):
    """Floats that a launch with this config needs."""
    size = config.bm * config.bn * split_programs(config, num_sms)
    return size if config.max_splits > 1 else 0
