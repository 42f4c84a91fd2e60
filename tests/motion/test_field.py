import pytest
import torch

from blockcopy_d2.motion import clear_field, field_size, moved_cells, resample_field, zero_field


@pytest.mark.parametrize(
    "image, cells", [((32, 48), (2, 3)), ((33, 47), (3, 3)), ((5, 1), (1, 1)), ((16, 17), (1, 2))]
)
def test_cells_cover_the_image(image, cells):
    assert field_size(image, 16) == cells
    field = zero_field(image, 16, streams=3)
    assert field.shape == (3, 2, *cells) and field.dtype == torch.float32
    assert not moved_cells(field).any()


def test_a_cell_moved_if_either_component_did():
    field = zero_field((32, 32), 16)
    field[0, 0, 0, 1] = 0.25
    field[0, 1, 1, 0] = -3
    assert moved_cells(field).tolist() == [[[False, True], [True, False]]]


def test_clearing_touches_the_named_streams_only_and_overwrites_nan():
    field = torch.full((3, 2, 2, 2), float("nan"))
    field[1] = 5
    assert clear_field(field, torch.tensor([True, False, True])) is field
    assert (field[[0, 2]] == 0).all() and (field[1] == 5).all()


def test_finer_cells_repeat_and_coarser_ones_average():
    field = torch.arange(12.0).view(1, 2, 2, 3)
    finer = resample_field(field, 16, 8, (30, 40))
    assert finer.shape == (1, 2, 4, 5)
    for row in range(4):
        for column in range(5):
            assert torch.equal(finer[..., row, column], field[..., row // 2, column // 2])
    coarser = resample_field(field, 16, 32, (30, 40))
    assert coarser[0, 0].tolist() == [[(0 + 1 + 3 + 4) / 4, (2 + 5) / 2]]
    assert torch.equal(resample_field(finer, 8, 16, (30, 40))[..., :2], field[..., :2])
    assert resample_field(field, 16, 16, (30, 40)) is field


def test_a_field_of_another_image_is_refused():
    with pytest.raises(ValueError, match=r"expected \(2, 3\)"):
        resample_field(torch.zeros(1, 2, 2, 2), 16, 8, (30, 40))
    with pytest.raises(ValueError, match="multiple or a divisor"):
        resample_field(torch.zeros(1, 2, 2, 3), 16, 12, (30, 40))
