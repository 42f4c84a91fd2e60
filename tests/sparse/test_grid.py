"""BlockGrid: pixels that an active block covers, at every stride, at any image size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockcopy_d2.sparse import BlockGrid, num_blocks
from blockcopy_d2.sparse.oracle import active_pixels


@st.composite
def grids(draw):
    block_size = draw(st.sampled_from([8, 16, 32]))
    size = (draw(st.integers(33, 90)), draw(st.integers(33, 90)))
    batch = draw(st.integers(1, 2))
    shape = (batch, *num_blocks(block_size, size))
    seed = draw(st.integers(0, 1000))
    fraction = draw(st.sampled_from([0.0, 0.2, 0.6, 1.0]))
    active = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < fraction
    return BlockGrid(active, block_size=block_size, image_size=size)


@settings(max_examples=60, deadline=None)
@given(grids(), st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_tile_rows_are_the_active_pixels(grid, stride):
    level = grid.at_stride(stride)
    expected = active_pixels(grid, level.size)
    rows = level.tile_rows(outside="write")
    written = torch.zeros(expected.numel() + 2, dtype=torch.bool)
    written[rows] = True
    assert torch.equal(written[: expected.numel()].view(expected.shape), expected)
    assert not written[expected.numel()], "the row of zeros is never written"
    assert level.num_pixels == int(expected.sum())
    assert torch.equal(level.pixel_mask(), expected)
    covered = torch.zeros_like(expected)
    for stream, ys, xs in level.slices():
        covered[stream, ys, xs] = True
    assert torch.equal(covered, expected)


@settings(max_examples=30, deadline=None)
@given(grids())
def test_fraction_and_flags(grid):
    assert grid.num_active == int(grid.active.sum())
    assert grid.fraction == pytest.approx(grid.active.float().mean().item())
    assert grid.is_full == bool(grid.active.all())
    assert grid.is_empty == (not grid.active.any())


@settings(max_examples=30, deadline=None)
@given(grids(), st.sampled_from([1, 2, 4, 8]))
def test_inside_tiles_count_the_pixels(grid, stride):
    level = grid.at_stride(stride)
    inside = level.inside_tiles()
    if inside is not None:
        pixels = inside[: level.selection.count].sum((1, 2))
        assert int(pixels.sum()) == level.num_pixels
        areas = level.block_areas().repeat(len(grid.active))
        assert torch.equal(pixels.float(), areas[level.selection.block[: level.selection.count]])
    height, width = level.size
    assert level.block_areas().sum() == height * width


def test_a_pixel_above_the_block_size_is_active_when_any_of_its_blocks_is():
    active = torch.zeros(1, 3, 5, dtype=torch.bool)
    active[0, 2, 4] = True
    level = BlockGrid(active, block_size=8, image_size=(24, 40)).at_stride(16)
    assert level.size == (2, 3)
    assert level.pixel_mask().nonzero().tolist() == [[0, 1, 2]]


def test_window_rows_read_zero_beyond_the_border_or_clamp():
    grid = BlockGrid.full(block_size=2, image_size=(3, 4))
    level = grid.at_stride(1)
    options = {"window": (4, 4), "stride": (1, 1), "start": (-1, -1)}
    zeros = level.window_rows((3, 4), **options).view(4, 4, 4)
    clamped = level.window_rows((3, 4), **options, outside="clamp").view(4, 4, 4)
    assert zeros[0].tolist() == [[12] * 4, [12, 0, 1, 2], [12, 4, 5, 6], [12, 8, 9, 10]]
    assert clamped[3].tolist() == [[5, 6, 7, 7], [9, 10, 11, 11], [9, 10, 11, 11], [9, 10, 11, 11]]


@pytest.mark.parametrize("block_size,stride", [(48, 32), (24, 16), (12, 8)])
def test_strides_must_align(block_size, stride):
    grid = BlockGrid.full(block_size=block_size, image_size=(96, 96))
    with pytest.raises(ValueError, match=f"{block_size}.*stride {stride}.*power of two"):
        grid.at_stride(stride)
