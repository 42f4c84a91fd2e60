"""Curves over the frames of a run."""

import pytest
import torch

pytestmark = pytest.mark.usefixtures("project")


def test_points_are_of_windows_of_frames_and_of_all_methods_of_a_row():
    from blockcopy_protocol.course import WINDOW, Course

    first, second = Course(), Course()
    active = torch.tensor([[[True, False]]])
    for index in range(WINDOW + 5):
        gain = torch.tensor([[[1.0, 3.0]]]) if index < WINDOW else torch.zeros(1, 1, 2)
        first.add(active, gain)
        second.add(~active if index < WINDOW else active | True, gain)
    assert Course.points([first]) == [
        {"frames": WINDOW, "executed": 0.5, "gain_share": 0.25},
        {"frames": WINDOW + 5, "executed": 0.5, "gain_share": None},
    ]
    assert Course.points([first, second]) == [
        {"frames": WINDOW, "executed": 0.5, "gain_share": 0.5},
        {"frames": WINDOW + 5, "executed": 0.75, "gain_share": None},
    ]
    assert Course.points([Course()]) == []
