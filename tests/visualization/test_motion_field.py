import numpy as np
import pytest
import torch

from blockcopy_d2.visualization import draw_frame, draw_motion

HEIGHT, WIDTH, CELL = 96, 160, 16
CORNER = np.zeros((HEIGHT, WIDTH), bool)
CORNER[:48, -40:] = True


@pytest.fixture
def image():
    return np.full((HEIGHT, WIDTH, 3), 100, np.uint8)


def field_of(dx, dy, rows=slice(3, 5), columns=slice(2, 4)):
    field = torch.zeros(2, HEIGHT // CELL, WIDTH // CELL)
    field[0, rows, columns], field[1, rows, columns] = dx, dy
    return field


def test_still_cells_stay_as_they_are_but_for_the_legend(image):
    picture = draw_motion(image, field_of(0, 0), cell_size=CELL)
    assert (picture[~CORNER] == 100).all() and (picture[CORNER] != 100).any()
    moved = (draw_motion(image, field_of(-6, 0), cell_size=CELL) != 100).any(2)
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[48:80, 32:64] = True
    assert np.array_equal(moved[~CORNER], expected[~CORNER])
    assert (image == 100).all()


@pytest.mark.parametrize(
    "field, color",
    [
        ((-8, 0), "r"),  # what was to the left went right
        ((8, 0), "gb"),
        ((0, -8), "rg"),  # down: between red and green
    ],
)
def test_the_hue_is_where_the_content_went(image, field, color):
    blue, green, red = draw_motion(image, field_of(*field), cell_size=CELL)[60, 40].astype(int)
    strong = {name for name, x in zip("bgr", (blue, green, red)) if x > 100}
    assert strong == set(color)


def test_further_is_stronger_and_outliers_do_not_set_the_scale(image):
    field = field_of(-3, 0, slice(0, 6), slice(0, 6))
    field[0, :, 3:6] = -7
    field[0, 0, 0] = -500
    picture = draw_motion(image, field, cell_size=CELL).astype(int)
    near, far = (int(np.ptp(picture[40, x])) for x in (20, 70))
    assert 20 < near < far - 20


def test_cells_are_of_the_input_and_the_picture_may_be_larger(image):
    picture = draw_motion(image, torch.tensor([-6.0, 0]).view(2, 1, 1), cell_size=8, scale=0.5)
    assert (picture[~CORNER] != 100).any(1).all()
    small = draw_motion(image[:9, :9], field_of(-6, 0), cell_size=CELL)
    assert np.array_equal(small, image[:9, :9]), "without room for a legend"


def test_a_frame_is_drawn_with_its_motion_where_there_is_one(image):
    field = field_of(-6, 0)
    expected = draw_motion(image, field, cell_size=CELL)
    assert np.array_equal(draw_frame(image, None, field=field, cell_size=CELL), expected)
    assert np.array_equal(draw_frame(image, None), image)
