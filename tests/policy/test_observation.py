import math

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances, RotatedBoxes
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path
from torch.nn import functional as F

from blockcopy_d2.policy import Observation, paint_output, rasterize_instances, resize_to_policy
from blockcopy_d2.sparse import num_blocks


@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("image_size", [(256, 512), (333, 517), (40, 300)])
@pytest.mark.parametrize("pixels", [16, 32])
def test_blocks_keep_their_place(block_size, image_size, pixels):
    """Constant blocks stay constant, at P x P pixels each; beyond the image there is zero."""
    grid_shape = num_blocks(block_size, image_size)
    values = torch.rand(1, 3, *grid_shape, generator=torch.Generator().manual_seed(0)) + 1
    full = values.repeat_interleave(block_size, 2).repeat_interleave(block_size, 3)
    image = full[:, :, : image_size[0], : image_size[1]]
    resized = resize_to_policy(image, grid_shape, pixels)
    assert resized.shape == (1, 3, pixels * grid_shape[0], pixels * grid_shape[1])
    if num_blocks(block_size, image_size) == (1, 1):
        return
    # Away from block borders, which bilinear upsampling smooths.
    for i in range(grid_shape[0] - 1):
        for j in range(grid_shape[1] - 1):
            top, left = pixels * i, pixels * j
            inner = resized[0, :, top + 2 : top + pixels - 2, left + 2 : left + pixels - 2]
            torch.testing.assert_close(inner, values[0, :, i, j, None, None].expand_as(inner))
    rows = image_size[0] * pixels // block_size + 3
    assert resized[:, :, rows:].count_nonzero() == 0


def test_resizing_averages_the_zero_padded_canvas():
    image = torch.rand(2, 3, 333, 517, generator=torch.Generator().manual_seed(0))
    canvas = F.pad(image, (0, 5 * 128 - 517, 0, 3 * 128 - 333))
    expected = F.interpolate(canvas, size=(96, 160), mode="area")
    torch.testing.assert_close(resize_to_policy(image, (3, 5)), expected)


@pytest.mark.parametrize("size", [(256, 512), (333, 517)])
def test_resizing_may_take_every_fourth_pixel(size):
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    shape = num_blocks(128, size)
    found = resize_to_policy(image, shape, nearest=True)
    assert found.shape[2:] == tuple(32 * x for x in shape)
    rows, columns = (-(-x // 4) for x in size)
    assert torch.equal(found[:, :, :rows, :columns], image[:, :, ::4, ::4])
    assert not found[:, :, rows:].any() and not found[:, :, :, columns:].any()
    assert not torch.equal(found, resize_to_policy(image, shape))


def test_a_grid_that_no_block_size_gives_is_refused():
    with pytest.raises(ValueError, match="No block size"):
        resize_to_policy(torch.zeros(1, 3, 256, 512), (3, 4))


@pytest.mark.parametrize("angle", [0, 30, -45, 90, 180, 400])
def test_rotated_boxes_are_rasterized_as_they_are_drawn(angle):
    box = torch.tensor([[100.0, 64.0, 90.0, 30.0, angle]])
    raster = rasterize_instances(
        Instances((128, 256), pred_boxes=RotatedBoxes(box)),
        image_size=(128, 256),
        canvas_size=(128, 256),
        grid_shape=(1, 2),
    )[0]
    # As Detectron2's Visualizer.draw_rotated_box_with_label does.
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    corners = [(-45, -15), (-45, 15), (45, 15), (45, -15)]
    polygon = [(sin * y + cos * x + 100, cos * y - sin * x + 64) for x, y in corners]
    rows, columns = np.mgrid[2:128:4, 2:256:4]
    centres = np.stack([columns.ravel(), rows.ravel()], axis=1)
    inside = Path(polygon).contains_points(centres, radius=0).reshape(rows.shape)
    assert inside.sum() > 100
    # Centres on an edge may be on either side.
    assert (raster.numpy() != inside).sum() <= 0.05 * inside.sum()


def with_masks(masks, size):
    return Instances(size, pred_masks=masks)


@settings(max_examples=30, deadline=None)
@given(
    image_size=st.tuples(st.integers(40, 300), st.integers(40, 300)),
    output_size=st.tuples(st.integers(20, 400), st.integers(20, 400)),
    block_size=st.sampled_from([32, 64, 128]),
)
def test_masks_are_sampled_at_pixel_centres(image_size, output_size, block_size):
    canvas_size = tuple(-(-x // 32) * 32 for x in image_size)
    grid_shape = num_blocks(block_size, canvas_size)
    if grid_shape == (1, 1):
        block_size = 2 ** (max(canvas_size) - 1).bit_length()
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(3, *output_size, generator=generator) > 0.5
    raster = rasterize_instances(
        with_masks(masks, output_size),
        image_size=image_size,
        canvas_size=canvas_size,
        grid_shape=grid_shape,
    )
    assert raster.dtype == torch.bool
    assert raster.shape == (3, 32 * grid_shape[0], 32 * grid_shape[1])
    step = block_size / 32
    for y in range(0, raster.shape[1], 7):
        for x in range(0, raster.shape[2], 5):
            centre = (y + 0.5) * step, (x + 0.5) * step
            if centre[0] >= image_size[0] or centre[1] >= image_size[1]:
                assert not raster[:, y, x].any()
                continue
            row, column = (centre[i] * output_size[i] / image_size[i] for i in (0, 1))
            if abs(row - round(row)) < 1e-3 or abs(column - round(column)) < 1e-3:
                continue  # on the edge of two output pixels
            assert torch.equal(raster[:, y, x], masks[:, int(row), int(column)])


def test_boxes_stand_in_for_masks():
    boxes = torch.tensor([[10.0, 20, 90, 60], [0, 0, 200, 100], [5, 5, 5, 5]])
    masks = torch.zeros(3, 100, 200, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    where = {"image_size": (200, 400), "canvas_size": (224, 416), "grid_shape": (2, 4)}
    of_boxes = rasterize_instances(Instances((100, 200), pred_boxes=Boxes(boxes)), **where)
    of_masks = rasterize_instances(with_masks(masks, (100, 200)), **where)
    assert of_boxes.any(dim=(1, 2)).tolist() == [True, True, False]
    assert torch.equal(of_boxes, of_masks)


@pytest.mark.parametrize("kind", ["pred_masks", "pred_boxes"])
def test_no_detections_give_no_masks(kind):
    empty = torch.zeros(0, 64, 64, dtype=torch.bool)
    fields = {"pred_masks": empty, "pred_boxes": Boxes(torch.zeros(0, 4))}
    raster = rasterize_instances(
        Instances((64, 64), **{kind: fields[kind]}),
        image_size=(64, 64),
        canvas_size=(64, 64),
        grid_shape=(2, 2),
    )
    assert raster.shape == (0, 64, 64)
    nothing = torch.zeros(0)
    painted = paint_output(raster, nothing, nothing.long(), 3)
    assert torch.equal(painted, torch.zeros(3, 64, 64))


def test_masks_before_postprocessing_are_refused():
    with pytest.raises(ValueError, match="detector_postprocess"):
        rasterize_instances(
            with_masks(torch.rand(2, 1, 28, 28), (64, 64)),
            image_size=(64, 64),
            canvas_size=(64, 64),
            grid_shape=(2, 2),
        )


@pytest.mark.parametrize("count", [1, 40, 300])
def test_painting_keeps_the_highest_score_of_each_class(count):
    generator = torch.Generator().manual_seed(count)
    masks = torch.rand(count, 32, 64, generator=generator) > 0.9
    scores = torch.rand(count, generator=generator)
    scores[: count // 2] = scores[0]
    classes = torch.randint(4, (count,), generator=generator)
    expected = torch.zeros(5, 32, 64)
    for mask, score, k in zip(masks, scores, classes, strict=True):
        expected[k] = torch.maximum(expected[k], mask * score)
    assert torch.equal(paint_output(masks, scores, classes, 5), expected)


def test_painting_warns_of_nothing(recwarn):
    ones = torch.ones(1)
    paint_output(torch.ones(1, 32, 32, dtype=torch.bool), ones, ones.long(), 2)
    assert not recwarn.list


@pytest.mark.parametrize("index", [7, torch.tensor(7), torch.tensor([7])])
def test_streams_of_one_frame_have_its_number_each(index):
    maps = [torch.zeros(3, 1, 2, 2)] * 4
    numbers = Observation(*maps, frame_index=index).frame_numbers()
    assert numbers.dtype == torch.int64 and numbers.tolist() == [7, 7, 7]


def test_streams_may_have_numbers_of_their_own():
    maps, index = [torch.zeros(3, 1, 2, 2)] * 4, torch.tensor([4, 0, 9])
    assert torch.equal(Observation(*maps, frame_index=index).frame_numbers(), index)
