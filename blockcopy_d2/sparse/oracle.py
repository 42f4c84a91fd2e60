"""The masked-dense definition of block-sparse execution: slow, plain, and what tests compare with.

Every operator of the unfused, captured network runs densely on full maps, and
y = where(active, op(x), y_previous). Shape shorthand: N streams, C channels, H x W pixels.
"""

import torch
import torch.utils._pytree as pytree

from .capture import Ref, capture


class MaskedDenseOracle:
    """Runs `module` as block-sparse execution is defined, for one stream."""

    def __init__(self, module, args, *, unmasked=(), kwargs=None):
        """
        Args:
            module, args, kwargs: as for capture().
            unmasked: names of the calls that run on the full maps and replace all of their
                output, because they have no block-sparse rule.
        """
        self._captured = capture(module, args, kwargs)
        self._unmasked = set(unmasked)
        self._previous = {}

    @torch.no_grad()
    def __call__(self, args, grid):
        """The outputs of one frame, in the module's own structure."""
        values = {}
        tensors = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, torch.Tensor)]
        for index, tensor in zip(self._captured.inputs, tensors):
            values[index] = self._masked(index, tensor, grid)
        for call in self._captured.calls:
            result = call.evaluate(values)
            if call.name not in self._unmasked:
                result = self._masked(call.index, result, grid)
            values[call.index] = result
        outputs = [
            values[output.index] if isinstance(output, Ref) else output
            for output in self._captured.outputs
        ]
        return pytree.tree_unflatten(outputs, self._captured.output_spec)

    def _masked(self, index, result, grid):
        if isinstance(result, torch.Tensor) and result.dim() == 4:
            active = active_pixels(grid, result.shape[-2:])
            if active is not None:
                if index in self._previous:
                    result = torch.where(active[:, None], result, self._previous[index])
                self._previous[index] = result
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
