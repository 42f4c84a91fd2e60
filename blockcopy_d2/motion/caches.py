"""
Moves the features that the block-sparse modules of a stream keep.

Shape shorthand in this module:

    N: streams
    C: channels
    H, W: height and width of a map of stride s
    c: side of a cell, in pixels of the network's input
    B: side of a block, in pixels of the network's input
    GH, GW: rows and columns of cells
"""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from blockcopy_d2.config import check_arguments
from blockcopy_d2.config_key import power_of_two
from blockcopy_d2.kernels.device import on_device
from blockcopy_d2.sparse.lowering import lower
from blockcopy_d2.sparse.tracing import Ref

from .field import field_size, moved_cells
from .move_tables import staging_bytes
from .torch_moving import MovedPixels

__all__ = ["MOVED_MAPS", "CacheMover", "moved_values"]

MOVED_MAPS = ("outputs", "all")


@dataclass(frozen=True)
class MovedMap:
    """
    A feature map that moves.

    Attributes:
        rows (Tensor): (at least NHW, C), see ``FeatureMap``.
        size (tuple[int, int]): H, W.
        num_pixels (int): NHW.
        stride (int): s.
        lifted (bool): whether its values are lifted for TF32 products.
    """

    rows: Tensor
    size: tuple[int, int]
    num_pixels: int
    stride: int
    lifted: bool

    @property
    def key(self):
        """tuple: equal for maps in the same place."""
        rows = self.rows
        return (rows.data_ptr(), rows.shape, rows.stride(), rows.dtype, self.size, self.stride)


class CacheMover:
    """
    Moves the feature maps of streams before the blocks of a frame run:

        mover(state, grid, field)
        with block_sparse(model, grid, state):
            outputs = model(image)

    So a block that does not run keeps its features, moved: ``y = where(active, op(x), move(y))``,
    see :func:`.move.move`. Maps of different values that share memory move together. These tensors
    stay: maps of strides above ``max_stride``, and maps inside the modules below ``min_stride``;
    partial sums of normalizations and global means, which date from when a block last ran; and
    tensors that are not maps of the frame. Operators without a block-sparse rule run on the full
    maps, including moved ones.
    """

    def __init__(self, *, cell_size, maps="outputs", min_stride=2, max_stride=64):
        """
        Args:
            cell_size (int): c, a power of two.
            maps (str): "outputs" for the maps that leave the block-sparse modules, "all" for every
                map that outlives a frame.
            min_stride (int): maps of smaller strides stay in place, but those that leave the
                modules.
            max_stride (int): maps of larger strides stay in place.

        Raises:
            ValueError: ``maps`` is neither, or another argument is not a power of two.
        """
        check_arguments("MODEL.BLOCKCOPY.MOTION", min_stride=min_stride, max_stride=max_stride)
        if maps not in MOVED_MAPS:
            raise ValueError(f"maps is {maps!r}: must be one of {', '.join(MOVED_MAPS)}.")
        power_of_two(8, least=1, most=4096).check("cell_size", cell_size)
        self.cell_size = cell_size
        self.maps = maps
        self.min_stride = min_stride
        self.max_stride = max_stride
        self._bound = WeakKeyDictionary()
        self._values = WeakKeyDictionary()
        self._staging = {}

    @torch.no_grad()
    def __call__(self, state, grid, field):
        """
        Args:
            state (StreamState): state of N streams, whose maps are changed in place. A state
                without features is left as it is.
            grid (BlockGrid): the blocks that will run. Their pixels may hold anything afterwards.
            field (Tensor): float32 (N, 2, GH, GW).

        Raises:
            ValueError: field, cells and blocks do not fit each other.
        """
        self._check(grid, field)
        try:
            with on_device(field.device):
                for move in self.bind(state, grid):
                    move(field, grid)
        except BaseException:
            # Some maps have moved and others have not: no basis for the next frame.
            state.reset()
            raise
        for _, caches in state.programs():
            caches.moved = True

    def bind(self, state, grid):
        """
        Allocates memory to move the maps of a stream. Use it before a CUDA graph is captured;
        elsewhere, a call does so when it sees these maps for the first time.

        Args:
            state (StreamState): after its first frame.
            grid (BlockGrid): any of its frames.

        Returns:
            list: functions of a field and a grid.
        """
        maps = self._maps_of(state)
        key = (grid.block_size, grid.image_size, [moved.key for moved, _ in maps])
        known = self._bound.get(state)
        if known is None or known[0] != key:
            known = self._bound[state] = (key, self._bind(maps, grid))
        return known[1]

    def nbytes(self, state):
        """
        Args:
            state (StreamState): after its first frame.

        Returns:
            int: bytes of the maps that move.
        """
        return sum(
            moved.num_pixels * moved.rows.shape[1] * moved.rows.element_size()
            for moved, _ in self._maps_of(state)
        )

    def _check(self, grid, field):
        if grid.block_size % self.cell_size:
            raise ValueError(
                f"Cells of {self.cell_size} pixels do not fit blocks of {grid.block_size}: the "
                "block size must be a multiple of the cell size."
            )
        expected = (len(grid.active), 2, *field_size(grid.image_size, self.cell_size))
        if tuple(field.shape) != expected or field.dtype != torch.float32:
            raise ValueError(
                f"The motion field is {field.dtype} {tuple(field.shape)}, expected torch.float32 "
                f"{expected} for {len(grid.active)} streams of {grid.image_size} pixels and cells "
                f"of {self.cell_size}."
            )

    def _maps_of(self, state):
        """
        Returns:
            list[tuple[MovedMap, LoweredForTriton or None]]: every memory once.
        """
        own, read = [], []
        for program, caches in state.programs():
            if program not in self._values:
                values = moved_values(
                    program,
                    maps=self.maps,
                    min_stride=self.min_stride,
                    max_stride=self.max_stride,
                )
                self._values[program] = (values, _roots(program))
            values, roots = self._values[program]
            # PyTorch's operators keep a map per value, Triton's one for all that share its memory.
            if program.lowered is not None:
                values = {roots.get(index, index) for index in values}
            for index in sorted(values & caches.maps.keys()):
                value, feature_map = program.values[index], caches.maps[index]
                moved = MovedMap(
                    feature_map.rows, value.size, value.num_pixels, value.stride, feature_map.lifted
                )
                (read if index in program.inputs else own).append((moved, program.lowered))
        # A module may read the output of another one, or some of its channels, in place.
        maps = {}
        for moved, lowered in own + read:
            maps.setdefault(moved.rows.untyped_storage().data_ptr(), (moved, lowered))
        return list(maps.values())

    def _bind(self, maps, grid):
        """
        Returns:
            list: functions of a field and a grid that move them.
        """
        groups = {}
        for moved, lowered in maps:
            groups.setdefault((lowered is None, moved.rows.dtype), []).append((moved, lowered))
        moves = []
        for group in groups.values():
            together = [moved for moved, _ in group]
            if group[0][1] is None:
                moves.append(_TorchMove(together, self.cell_size))
            else:
                moves.append(self._triton_move(together, group[0][1], grid))
        return moves

    def _triton_move(self, maps, lowered, grid):
        from .triton_moving import MoveLaunch

        device, size = maps[0].rows.device, staging_bytes(maps)
        staging = self._staging.get(device)
        if staging is None or len(staging) < size:
            # Launches that were bound before keep the smaller one. 0xFF bytes are NaN in every
            # float type, so that reads of unwritten memory show.
            staging = torch.full((size,), 0xFF, dtype=torch.uint8, device=device)
            self._staging[device] = staging
        sizes = dict(cell_size=self.cell_size, block_size=grid.block_size)
        options = dict(precision=lowered.precision, device=lowered.device)
        launch = MoveLaunch(maps, staging, **sizes, **options)
        return lambda field, grid: launch(field.contiguous(), grid.active.contiguous())


class _TorchMove:
    def __init__(self, maps, cell_size):
        """
        Args:
            maps (list[MovedMap]):
            cell_size (int): c.
        """
        self._levels = {}
        for moved in maps:
            self._levels.setdefault((moved.stride, moved.size), []).append(moved.rows)
        self._cell_size = cell_size

    def __call__(self, field, grid):
        if grid.is_full or not moved_cells(field).any():
            return
        for (stride, size), maps in self._levels.items():
            pixels = MovedPixels(field, grid, cell_size=self._cell_size, stride=stride, size=size)
            for rows in maps:
                pixels.move(rows)


def moved_values(program, *, maps, max_stride, min_stride=2):
    """
    Args:
        program (Program): program of a block-sparse module.
        maps, max_stride, min_stride: see :class:`CacheMover`.

    Returns:
        set[int]: numbers of the values whose maps move. Values move together if one is part of the
        other: a concatenation and its inputs, a map and its slices.
    """
    movable = {
        index
        for index, value in program.values.items()
        if value.persistent and value.stride is not None and value.stride <= max_stride
    }
    roots = _roots(program)
    outputs = [output.index for output in program.outputs if isinstance(output, Ref)]
    roots_of_moved = {roots.get(index, index) for index in outputs}
    if maps == "all":
        # Maps inside the network are read in halos around blocks only: a pixel or two of fine maps.
        inside = {index for index in movable if program.values[index].stride >= min_stride}
        roots_of_moved |= {roots.get(index, index) for index in inside}
    return {index for index in movable if roots.get(index, index) in roots_of_moved}


def _roots(program):
    """
    Returns:
        dict[int, int]: number of a value -> number of the value it is part of, or its own.
    """
    schedule = lower(program) if program.lowered is None else program.lowered.schedule
    return {index: root for index, (root, _) in schedule.places.items()}
