"""
Blocks of a picture that always run, and blocks that never run.

Shape shorthand in this module:

    N: streams of a batch
    GH, GW: rows and columns of the block grid
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from blockcopy_d2.sparse import num_blocks

from .inputs import put_image

__all__ = ["BlockRegion", "StreamRegions", "place_regions"]


@dataclass(eq=False, frozen=True)
class BlockRegion:
    """
    Says of each block of a picture whether it always runs, never runs, or runs as the policy
    decides. An input of a model may have one as "region"; it holds for that frame of its stream.

    Frames that follow nothing still execute all blocks: the first of a video, those after a cut,
    and those around a frame that is not finite. So the features of a block that never runs are
    those of such a frame; they move with the picture where there is motion.

    Attributes:
        always (Tensor): bool (GH, GW), over the picture without its padding.
        never (Tensor): bool (GH, GW). No block is both.
    """

    always: Tensor
    never: Tensor

    def __post_init__(self):
        for name, mask in (("always", self.always), ("never", self.never)):
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.dim() != 2:
                found = (
                    f"{mask.dtype} {tuple(mask.shape)}"
                    if isinstance(mask, Tensor)
                    else type(mask).__name__
                )
                raise ValueError(f"{name} of a region is {found}; expected a bool tensor (GH, GW).")
        if self.always.shape != self.never.shape or (self.always & self.never).any():
            raise ValueError(
                "always and never of a region must have one shape, and no block in common."
            )


class StreamRegions:
    """
    The regions of N streams, in memory that stays where it is: CUDA graphs read it.

    Attributes:
        always (Tensor): bool (N, GH, GW).
        never (Tensor): bool (N, GH, GW).
        bias (Tensor): float (N, GH, GW): infinite for blocks that always run, minus infinite for
            those that never do, else 0. Added to scores, it puts blocks in order.
    """

    def __init__(self, num_streams, grid_shape, device):
        """
        Args:
            num_streams (int): N.
            grid_shape (tuple[int, int]): GH, GW, padding included.
            device (torch.device):
        """
        self.always = torch.zeros(num_streams, *grid_shape, dtype=torch.bool, device=device)
        self.never = torch.zeros_like(self.always)
        self.bias = torch.zeros_like(self.always, dtype=torch.float32)
        self._placed = [None] * num_streams

    def place(self, inputs, block_size, image_size):
        """
        Take over the regions of frames. The host does not wait for the device.

        Args:
            inputs (list[dict or None]): inputs of every stream; those without a "region" have none.
            block_size (int):
            image_size (tuple[int, int]): height and width of the images.

        Raises:
            ValueError: a region has another size, or is none at all.
        """
        for slot, one in enumerate(inputs):
            region = self._placed[slot] if one is None else one.get("region")
            if region is self._placed[slot]:
                continue
            if region is not None:
                _check(region, num_blocks(block_size, image_size))
            self._fill(slot, region)
            self._placed[slot] = region

    def confine(self, active):
        """
        Args:
            active (Tensor): bool (N, GH, GW).

        Returns:
            Tensor: bool (N, GH, GW), with the blocks that always run, without those that never do.
        """
        # In one launch: True is greater than False.
        return (active | self.always) > self.never

    def _fill(self, slot, region):
        for place in (self.always[slot], self.never[slot], self.bias[slot]):
            place.zero_()
        if region is None:
            return
        rows, columns = region.always.shape
        bias = torch.zeros(rows, columns).masked_fill(region.always.cpu(), math.inf)
        bias = bias.masked_fill(region.never.cpu(), -math.inf)
        parts = ((region.always, self.always), (region.never, self.never), (bias, self.bias))
        for part, place in parts:
            put_image(part, place[slot, :rows, :columns])


def place_regions(model, inputs, streams):
    """
    Put the regions of frames where they are read.

    Args:
        model (BlockCopyVideoModel):
        inputs (list[dict or None]): inputs of every stream.
        streams (StreamBatch): whose frames have a size.

    Raises:
        ValueError: a region does not fit the picture.
    """
    grid_shape, regions = num_blocks(model.block_size, streams.canvas_size), streams.regions
    if regions is None or tuple(regions.always.shape[1:]) != tuple(grid_shape):
        regions = streams.regions = StreamRegions(streams.num_streams, grid_shape, model.device)
    regions.place(inputs, model.block_size, streams.image_size)


def _check(region, grid_shape):
    if not isinstance(region, BlockRegion):
        raise ValueError(
            f"The 'region' of an input is {type(region).__name__}; expected a BlockRegion."
        )
    if tuple(region.always.shape) != tuple(grid_shape):
        raise ValueError(
            f"The region of a frame has {tuple(region.always.shape)} blocks, the picture"
            f" {tuple(grid_shape)}."
        )
