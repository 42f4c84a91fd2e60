"""The active blocks of a frame, as row indices into the feature maps of every stride.

Shape shorthand: N streams, B block size in input pixels, GH x GW blocks, H x W pixels of a feature
map at stride s, T = B / s block size at that stride, A active blocks.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F

# A convolution library prepares a new primitive for every new batch size. Repeating the last active
# block up to a multiple of 1 / _BATCH_SIZES of all blocks keeps the number of sizes small.
_BATCH_SIZES = 32


def num_blocks(block_size: int, image_size: tuple[int, int]) -> tuple[int, int]:
    """(GH, GW): how many blocks cover an image of (H, W) pixels, border blocks clipped."""
    height, width = image_size
    return -(-height // block_size), -(-width // block_size)


class BlockGrid:
    """The executed blocks of a frame; the others keep their features.

    Block (i, j) covers the input pixels [iB, (i+1)B) x [jB, (j+1)B), clipped at the border. At a
    stride s that divides B it covers B/s x B/s pixels. A pixel at a stride above B covers several
    blocks, and counts as active when any of them is.
    """

    def __init__(
        self, active: torch.Tensor, *, block_size: int, image_size: tuple[int, int]
    ) -> None:
        """
        Args:
            active: bool (N, GH, GW), the executed blocks of N streams.
            block_size: B, in pixels of the network's input.
            image_size: (H, W) of the network's input, padding included.

        Raises:
            ValueError: if the shape of `active` does not fit.
        """
        expected = num_blocks(block_size, image_size)
        if active.dtype != torch.bool or active.dim() != 3 or active.shape[1:] != expected:
            raise ValueError(
                f"BlockGrid: active blocks are {tuple(active.shape)} of {active.dtype}, expected "
                f"bool (N, {expected[0]}, {expected[1]}) for an image of {tuple(image_size)} and "
                f"blocks of {block_size} pixels."
            )
        self.active = active
        self.block_size = block_size
        self.image_size = tuple(image_size)
        self._levels = {}
        self._selections = {}
        self._lists = {}

    @classmethod
    def full(
        cls,
        *,
        block_size: int,
        image_size: tuple[int, int],
        batch: int = 1,
        device: torch.device | str | None = None,
    ) -> "BlockGrid":
        """Returns a grid with every block active.

        Args:
            block_size, image_size: see BlockGrid.
            batch: N.
            device: device of `active`.

        Returns:
            BlockGrid
        """
        shape = (batch, *num_blocks(block_size, image_size))
        active = torch.ones(shape, dtype=torch.bool, device=device)
        return cls(active, block_size=block_size, image_size=image_size)

    @classmethod
    def empty(
        cls,
        *,
        block_size: int,
        image_size: tuple[int, int],
        batch: int = 1,
        device: torch.device | str | None = None,
    ) -> "BlockGrid":
        """Returns a grid with no block active.

        Args:
            block_size, image_size, batch, device: see full().

        Returns:
            BlockGrid
        """
        shape = (batch, *num_blocks(block_size, image_size))
        active = torch.zeros(shape, dtype=torch.bool, device=device)
        return cls(active, block_size=block_size, image_size=image_size)

    @property
    def shape(self) -> tuple[int, int]:
        """(GH, GW)."""
        return tuple(self.active.shape[1:])

    @property
    def num_active(self) -> int:
        """Active blocks of all streams, on the host."""
        return self.selection(1).count

    @property
    def fraction(self) -> float:
        """Active share of all blocks, on the host."""
        return self.num_active / self.active.numel()

    @property
    def is_full(self) -> bool:
        """Returns whether all blocks are active; on the host."""
        return self.num_active == self.active.numel()

    @property
    def is_empty(self) -> bool:
        """Returns whether no block is active; on the host."""
        return self.num_active == 0

    def selection(self, factor: int) -> "BlockSelection":
        """Returns the active blocks, with groups of blocks counted as one.

        Args:
            factor: blocks along an axis that count as one.

        Returns:
            BlockSelection
        """
        if factor not in self._selections:
            active = self.active
            if factor > 1:
                height, width = self.shape
                padded = F.pad(active.float(), (0, -width % factor, 0, -height % factor))
                active = F.max_pool2d(padded, factor) > 0
            self._selections[factor] = BlockSelection(active)
        return self._selections[factor]

    def block_list(self, factor: int) -> Any:
        """Returns the same blocks as selection(), without a copy to the host.

        Args:
            factor: see selection().

        Returns:
            triton_ops.geometry.BlockList
        """
        if factor not in self._lists:
            from .triton_ops.compact import allocate_list, compact

            self._lists[factor] = allocate_list(self.active, factor)
            compact(self.active.contiguous(), factor, self._lists[factor])
        return self._lists[factor]

    def at_stride(self, stride: int) -> "Level":
        """Returns the grid at the resolution of one stride.

        Args:
            stride: s.

        Returns:
            Level

        Raises:
            ValueError: if neither of block size and stride divides the other.
        """
        if stride not in self._levels:
            check_stride(self.block_size, stride)
            size = tuple(math.ceil(extent / stride) for extent in self.image_size)
            tile = max(self.block_size // stride, 1)
            selection = self.selection(max(stride // self.block_size, 1))
            self._levels[stride] = Level(selection, tile=tile, size=size)
        return self._levels[stride]


def check_stride(block_size, stride):
    """Raises ValueError if blocks of `block_size` do not align with feature maps of `stride`."""
    if block_size % stride and stride % block_size:
        raise ValueError(
            f"Block size {block_size} does not align with a feature map of stride {stride}: one "
            "must divide the other. Choose MODEL.BLOCKCOPY.BLOCK_SIZE as a power of two, "
            "for example 64 or 128."
        )


class BlockSelection:
    """The active blocks of a (N, GH, GW) map as index lists (stream, row, column) of length A.

    The lists are rounded up by repeating the last block; `count` is the true number.
    """

    def __init__(self, active):
        self.active = active
        stream, row, column = torch.nonzero(active, as_tuple=True)
        self.count = len(row)
        step = max(active.numel() // _BATCH_SIZES, 1)
        rounded = min(-(-self.count // step) * step, active.numel())
        if rounded > self.count:
            last = (rounded - self.count,)
            stream, row, column = (
                torch.cat([index, index[-1:].expand(last)]) for index in (stream, row, column)
            )
        self.stream, self.row, self.column = stream, row, column

    @property
    def block(self):
        """int64 (A,): the flat index of each active block in (N, GH, GW)."""
        _, height, width = self.active.shape
        return (self.stream * height + self.row) * width + self.column


class Level:
    """A BlockSelection at one stride: blocks of T x T pixels in feature maps of H x W pixels.

    Feature maps are addressed as rows of C channels: pixel (y, x) of stream n is row (nH + y)W + x.
    Two more rows follow the last pixel: reads outside the map see row NHW, and writes outside of it
    go to row NHW + 1.
    """

    def __init__(self, selection, *, tile, size):
        self.selection = selection
        self.tile = tile
        self.size = size
        self._rows = {}
        self._num_pixels = None

    @property
    def num_pixels(self):
        """Active pixels of all streams inside the map, on the host."""
        if self._num_pixels is None:
            active = self.selection.active.flatten(1)
            self._num_pixels = int((active * self.block_areas()).sum())
        return self._num_pixels

    def slices(self):
        """(stream, rows, columns) of every active block, as slices clipped at the border."""
        selection = self.selection
        blocks = zip(selection.stream.tolist(), selection.row.tolist(), selection.column.tolist())
        for stream, row, column in list(blocks)[: selection.count]:
            top, left = row * self.tile, column * self.tile
            yield stream, slice(top, top + self.tile), slice(left, left + self.tile)

    def pixel_mask(self):
        """bool (N, H, W): the active pixels."""
        active = self.selection.active
        for axis in (1, 2):
            active = active.repeat_interleave(self.tile, axis)
        return active[:, : self.size[0], : self.size[1]]

    def block_areas(self):
        """float (GH * GW,): pixels of every block, active or not, inside the map."""
        ys, xs = (self._block_extents(axis) for axis in (0, 1))
        return (ys[:, None] * xs[None, :]).flatten().float()

    def inside_tiles(self):
        """bool (A, T, T): the pixels of the active blocks inside the map; None if all are."""
        selection = self.selection
        if all(extent % self.tile == 0 for extent in self.size):
            return None
        pixel = torch.arange(self.tile, device=selection.row.device)
        ys = pixel < self._block_extents(0)[selection.row][:, None]
        xs = pixel < self._block_extents(1)[selection.column][:, None]
        return ys[:, :, None] & xs[:, None, :]

    def _block_extents(self, axis):
        """Pixels inside the map of every row (axis 0) or column (axis 1) of blocks."""
        active = self.selection.active
        start = torch.arange(active.shape[1 + axis], device=active.device) * self.tile
        return (self.size[axis] - start).clamp(0, self.tile)

    def tile_rows(self, *, outside):
        """Rows of the pixels of every active block, int64 (A * T * T,).

        Args:
            outside: "read" or "write", which extra row stands for pixels beyond the border.
        """
        return self.window_rows(
            self.size, window=(self.tile,) * 2, stride=(1, 1), start=(0, 0), outside=outside
        )

    def window_rows(self, size, *, window, stride, start, outside="read"):
        """Returns the rows of a window around each active block, in a map that may have another
        stride.

        Along each axis, the window of the block whose first pixel is p covers the pixels
        p * stride + start + k for k in [0, window).

        Args:
            size: (H, W) of the map that is read.
            window, stride, start: pairs (y, x).
            outside: "read" or "write" as in tile_rows, or "clamp": the nearest pixel of the border.

        Returns:
            int64 (A * window_y * window_x,).
        """
        key = (size, window, stride, start, outside)
        if key not in self._rows:
            axes = self._window_axes(window, stride, start)
            self._rows[key] = self._rows_of(*axes, size, outside)
        return self._rows[key]

    def window_outside(self, size, *, window, stride, start):
        """bool (A, window_y, window_x): the pixels of those windows beyond the border."""
        ys, xs = self._window_axes(window, stride, start)
        outside_y, outside_x = ((c < 0) | (c >= extent) for c, extent in zip((ys, xs), size))
        return outside_y[:, :, None] | outside_x[:, None, :]

    def _window_axes(self, window, stride, start):
        axes = []
        for axis, block in enumerate((self.selection.row, self.selection.column)):
            offset = start[axis] + torch.arange(window[axis], device=block.device)
            axes.append((block * (self.tile * stride[axis]))[:, None] + offset)
        return axes

    def tap_rows(self, size, *, kernel, stride, padding, dilation):
        """Rows that each active pixel's kernel taps read, int64 (A * T * T * KH * KW,)."""
        key = (size, "taps", kernel, stride, padding, dilation)
        if key not in self._rows:
            axes = []
            for axis, block in enumerate((self.selection.row, self.selection.column)):
                pixel = torch.arange(self.tile, device=block.device) * stride[axis]
                tap = torch.arange(kernel[axis], device=block.device) * dilation[axis]
                origin = block * (self.tile * stride[axis]) - padding[axis]
                axes.append(origin[:, None] + (pixel[:, None] + tap[None, :]).flatten())
            rows = self._rows_of(*axes, size, "read")
            shape = (-1, self.tile, kernel[0], self.tile, kernel[1])
            self._rows[key] = rows.view(shape).transpose(2, 3).flatten()
        return self._rows[key]

    def nearest_rows(self, size, *, scale):
        """Rows that nearest upsampling by `scale` reads for every active pixel, (A * T * T,)."""
        key = (size, "nearest", scale)
        if key not in self._rows:
            pixel = torch.arange(self.tile, device=self.selection.row.device)
            ys = ((self.selection.row * self.tile)[:, None] + pixel) // scale
            xs = ((self.selection.column * self.tile)[:, None] + pixel) // scale
            self._rows[key] = self._rows_of(ys, xs, size, "read")
        return self._rows[key]

    def _rows_of(self, ys, xs, size, outside):
        """(A, KH) and (A, KW) coordinates to (A * KH * KW,) rows of maps of `size`."""
        height, width = size
        if outside == "clamp":
            ys, xs = ys.clamp(0, height - 1), xs.clamp(0, width - 1)
        rows = (self.selection.stream[:, None] * height + ys)[:, :, None] * width + xs[:, None, :]
        if outside != "clamp":
            inside_y = (ys >= 0) & (ys < height)
            inside_x = (xs >= 0) & (xs < width)
            inside = inside_y[:, :, None] & inside_x[:, None, :]
            beyond = self.selection.active.shape[0] * height * width + (outside == "write")
            rows = torch.where(inside, rows, beyond)
        return rows.flatten()
