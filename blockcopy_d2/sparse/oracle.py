"""The masked-dense definition of block-sparse execution: slow, plain, and the reference of tests.

Every operator of the unfused, traced network runs densely on full maps, and
y = where(active, op(x), y_previous). With motion, the maps that move are
y = where(active, op(x), move(y_previous)). Group normalization and means over the whole map see
maps as they were executed, in place: a block contributes what it did when it last ran, wherever its
content has moved since. Results of operators without a block-sparse rule are computed anew from
moved maps, and never move themselves.

Shape shorthand: N streams, C channels, H x W pixels.
"""

import torch
import torch.utils._pytree as pytree

from .tracing import Ref, trace


class MaskedDenseOracle:
    """Runs `module` as block-sparse execution is defined, for one stream."""

    def __init__(self, module, args, *, unmasked=(), moved=(), in_place=(), kwargs=None):
        """
        Args:
            module, args, kwargs: as for trace().
            unmasked: names of the calls that run on the full maps and replace all of their
                output, because they have no block-sparse rule.
            moved: numbers of the values that move.
            in_place: names of the calls that read maps as they were executed, for statistics.
        """
        self._traced = trace(module, args, kwargs)
        self._unmasked = set(unmasked)
        self._moved = set(moved)
        self._in_place = set(in_place)
        self._previous = {}
        # The same values without motion.
        self._executed = {}

    @torch.no_grad()
    def __call__(self, args, grid, move=None):
        """Returns the outputs of one frame, in the module's own structure.

        Args:
            args: arguments of the module.
            grid: BlockGrid.
            move: function of a map (N, C, H, W) that returns it moved; None where nothing moves.
        """
        values, executed = {}, {}
        tensors = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, torch.Tensor)]
        results = dict(zip(self._traced.inputs, tensors))
        for index, tensor in results.items():
            executed[index] = _masked(self._executed, index, tensor, grid)
            values[index] = _masked(self._previous, index, tensor, grid, self._move_of(index, move))
        for call in self._traced.calls:
            result = call.evaluate(executed if call.name in self._in_place else values)
            executed[call.index] = values[call.index] = result
            if call.name not in self._unmasked:
                index = call.index
                executed[index] = _masked(self._executed, index, result, grid)
                values[index] = _masked(
                    self._previous, index, result, grid, self._move_of(index, move)
                )
        outputs = [
            values[output.index] if isinstance(output, Ref) else output
            for output in self._traced.outputs
        ]
        return pytree.tree_unflatten(outputs, self._traced.output_spec)

    def _move_of(self, index, move):
        return move if index in self._moved else None


def _masked(kept, index, result, grid, move=None):
    """Returns where(active, result, kept), with `kept` moved if it moves, and keeps it."""
    if isinstance(result, torch.Tensor) and result.dim() == 4:
        active = active_pixels(grid, result.shape[-2:])
        if active is not None:
            if index in kept:
                before = kept[index] if move is None else move(kept[index])
                result = torch.where(active[:, None], result, before)
            kept[index] = result
    return result


def active_pixels(grid, size):
    """bool (N, H, W): which pixels of a map of `size` lie in active blocks.

    None if the map is not aligned with the grid at any power-of-two stride.
    """
    for stride in (2**power for power in range(11)):
        expected = tuple(-(-extent // stride) for extent in grid.image_size)
        if expected == tuple(size):
            ys, xs = (
                (torch.arange(extent, device=grid.active.device) * stride) // grid.block_size
                for extent in size
            )
            if stride <= grid.block_size:
                return grid.active[:, ys][:, :, xs]
            # One pixel covers several blocks and is active when any of them is.
            factor = stride // grid.block_size
            active = torch.zeros(len(grid.active), *size, dtype=torch.bool)
            for stream, row, column in torch.nonzero(grid.active).tolist():
                active[stream, row // factor, column // factor] = True
            return active.to(grid.active.device)
    return None
