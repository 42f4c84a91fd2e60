"""
Regions of a picture, as users draw them: polygons and masks, in pixels of the original picture.

Shape shorthand in this module:

    H, W: rows and columns of the picture in pixels
    GH, GW: rows and columns of blocks over it
"""

import dataclasses
import functools
import math
import numbers
from typing import Any

import numpy as np
import torch

from blockcopy_d2.modeling import BlockRegion
from blockcopy_d2.sparse import num_blocks

__all__ = ["Region", "VideoRegions"]

# The largest coordinate in pixels: products of larger ones could overflow.
_LARGEST = 1e9


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Region:
    """
    The parts of a picture in which the network runs. Each is a mask or polygons, in pixels of the
    picture; None has no effect.

    Attributes:
        area: outside of it nothing runs: blocks that touch none of it never do.
        always: blocks that touch it run in every frame.
        never: blocks that lie wholly in it never run.
    """

    area: Any = None
    always: Any = None
    never: Any = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            part = getattr(self, field.name)
            if part is not None:
                object.__setattr__(self, field.name, _checked(field.name, part))

    def __bool__(self):
        return any(getattr(self, field.name) is not None for field in dataclasses.fields(self))

    def check(self, picture_size):
        """
        Args:
            picture_size (tuple[int, int]): H, W.

        Raises:
            ValueError: see :meth:`blocks`, for a picture of that size.
        """
        self.blocks(picture_size, picture_size, block_size=max(picture_size))

    def blocks(self, picture_size, input_size, block_size):
        """
        Args:
            picture_size (tuple[int, int]): H, W.
            input_size (tuple[int, int]): height and width of the network's input, without padding;
                it shows the whole picture.
            block_size (int): side of a block in pixels of the network's input.

        Returns:
            BlockRegion: on the CPU.

        Raises:
            ValueError: a mask has another size than the picture, a part has no pixel of it, or
                ``always`` and ``never`` overlap.
        """
        count = functools.partial(
            _count, input_size=tuple(input_size), block_size=block_size, size=tuple(picture_size)
        )
        masks = {
            field.name: _mask(field.name, getattr(self, field.name), tuple(picture_size))
            for field in dataclasses.fields(self)
        }
        grid_shape = num_blocks(block_size, input_size)
        always, never = np.zeros((2, *grid_shape), dtype=bool)
        if masks["always"] is not None and masks["never"] is not None:
            both = masks["always"] & masks["never"]
            if both.any():
                row, column = (int(x[0]) for x in both.nonzero())
                raise ValueError(
                    "always and never of a region overlap, for instance at pixel"
                    f" x={column}, y={row}; expected each pixel in one of them at most."
                )
        if masks["area"] is not None:
            never |= count(masks["area"]) == 0
        if masks["never"] is not None:
            pixels = count(np.ones(picture_size, dtype=bool))
            never |= (count(masks["never"]) == pixels) & (pixels > 0)
        if masks["always"] is not None:
            always |= count(masks["always"]) > 0
        return BlockRegion(always=torch.from_numpy(always), never=torch.from_numpy(never & ~always))


class VideoRegions:
    """The regions of videos: one for all, and instead of it those of single videos."""

    def __init__(self):
        # Number of a video, or None for all others -> region.
        self._regions = {}
        self._blocks = {}

    def set(self, region, video=None):
        """
        Args:
            region (Region): one without parts leaves the decision to the policy everywhere.
            video (int or None): number of the video, from 0; None: all without a region of their
                own.
        """
        self._regions[video] = region
        self._blocks.clear()

    def check(self, num_videos):
        """
        Args:
            num_videos (int): number of videos that run.

        Raises:
            ValueError: another video has a region.
        """
        for video in list(self._regions):
            if video is not None and video >= num_videos:
                raise ValueError(
                    f"Video {video} has a region, but there are {num_videos} videos, from 0 on."
                )

    def place(self, inputs, video, block_size):
        """
        Write the blocks of a video's region into its frame, as "region". Without a region there is
        no such key.

        Args:
            inputs (dict): one of Detectron2's input dicts, with "image", "height" and "width".
            video (int): number of the video.
            block_size (int): see :meth:`Region.blocks`.

        Raises:
            ValueError: see :meth:`Region.blocks`.
        """
        key = video if video in self._regions else None
        region = self._regions.get(key)
        if not region:
            return
        sizes = (inputs["height"], inputs["width"]), tuple(inputs["image"].shape[-2:])
        known = key, sizes, block_size
        if known not in self._blocks:
            self._blocks[known] = region.blocks(*sizes, block_size)
        inputs["region"] = self._blocks[known]


def _checked(name, part):
    """A mask as bool array (H, W), or a list of polygons as float arrays (n, 2)."""
    if isinstance(part, torch.Tensor):
        part = part.detach().cpu().numpy()
    is_array = isinstance(part, np.ndarray)
    if is_array and part.ndim == 2 and (part.dtype == bool or part.shape[1] != 2):
        return _checked_mask(name, part)
    is_sequence = part.ndim > 0 if is_array else isinstance(part, (list, tuple))
    if not is_sequence or not len(part) or isinstance(part[0], numbers.Real):
        raise ValueError(
            f"{name} of a region is {part!r}; expected a mask (H, W), a polygon of x and y of its"
            " corners, or a list of polygons; None for no such part."
        )
    polygons = [part] if _is_point(part[0]) else part
    return [_checked_polygon(name, polygon) for polygon in polygons]


def _checked_mask(name, mask):
    if not mask.size:
        raise ValueError(f"{name} of a region is an empty mask {mask.shape}; expected (H, W).")
    if mask.dtype != bool and not np.isin(mask, (0, 1, 255)).all():
        raise ValueError(
            f"{name} of a region is a mask with other values than 0 and 1 (or 255); expected bool."
        )
    return mask.astype(bool)


def _checked_polygon(name, polygon):
    try:
        corners = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError):
        corners = np.empty(0)
    if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3:
        raise ValueError(
            f"A polygon in {name} of a region is {polygon!r}; expected x and y of three corners or"
            " more, such as [(0, 0), (640, 0), (640, 360)]."
        )
    if not (np.abs(corners) <= _LARGEST).all():
        raise ValueError(
            f"A polygon in {name} of a region has a corner that is not finite, or further away than"
            f" {_LARGEST:g} pixels."
        )
    if 0 <= corners.min() and corners.max() <= 1:
        raise ValueError(
            f"A polygon in {name} of a region lies within one pixel: {corners.tolist()}. Corners"
            " are in pixels of the picture; multiply shares of it by its width and height."
        )
    # On one line. The parts of a polygon that crosses itself may cancel in a sum, and count.
    if np.linalg.matrix_rank(corners - corners[0]) < 2:
        raise ValueError(f"A polygon in {name} of a region has no area: {corners.tolist()}.")
    return corners


def _is_point(value):
    return isinstance(value, (list, tuple, np.ndarray)) and all(
        isinstance(x, numbers.Real) for x in value
    )


def _mask(name, part, size):
    """ndarray or None: bool (H, W)."""
    if part is None:
        return None
    height, width = size
    if isinstance(part, np.ndarray):
        if part.shape != size:
            raise ValueError(
                f"{name} of a region is a mask of {part.shape[1]}x{part.shape[0]}, the picture is"
                f" {width}x{height}."
            )
        mask = part
    else:
        mask = np.zeros(size, dtype=bool)
        for corners in part:
            mask |= _inside(corners, size)
    if not mask.any():
        raise ValueError(
            f"{name} of a region has no pixel of the picture, which is {width}x{height}."
        )
    return mask


def _inside(corners, size):
    """ndarray: bool (H, W), pixels whose centres lie in a polygon, by the even-odd rule."""
    y, x = (np.arange(length) + 0.5 for length in size)
    inside = np.zeros(size, dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        rows = (y0 <= y) != (y1 <= y)
        if rows.any():
            crossing = x0 + (y[rows] - y0) * ((x1 - x0) / (y1 - y0))
            inside[rows] ^= x < crossing[:, None]
    return inside


def _count(mask, *, size, input_size, block_size):
    """ndarray: int (GH, GW), pixels of a mask in each block, counted where their centres lie."""
    sums = mask.astype(np.int64)
    for axis, (pixels, length) in enumerate(zip(size, input_size, strict=True)):
        blocks = math.ceil(length / block_size)
        owner = ((np.arange(pixels) + 0.5) * length / pixels // block_size).astype(int)
        owner = np.minimum(owner, blocks - 1)
        summed = np.zeros((blocks, *np.delete(sums.shape, axis)), dtype=np.int64)
        np.add.at(summed, owner, np.moveaxis(sums, axis, 0))
        sums = np.moveaxis(summed, 0, axis)
    return sums
