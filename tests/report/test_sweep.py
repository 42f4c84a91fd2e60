import math

import pytest

from blockcopy_d2.report.recording import Recording, Run, mean
from blockcopy_d2.report.sweep import Point, break_even, recommend, sweep_points


def point(target, milliseconds, speed_up, score):
    return Point(target, target, milliseconds, speed_up, {"AP50": score})


def recording(executed, seconds, dense):
    runs = [Run(0.5, executed=executed, seconds=seconds, scores={"AP50": 90.0})]
    frames = len(executed)
    return Recording(runs, runs[0], 64, frames=frames, dense_seconds=[dense] * frames)


def test_means_leave_the_first_frame_out():
    assert mean([9.0, 1.0, 3.0]) == 2 and mean([9.0]) == 9
    assert mean([9.0, math.nan, 3.0]) == 3 and math.isnan(mean([]))
    (row,) = sweep_points(recording([1, 0.25, 0.75], [9.0, 0.1, 0.3], dense=0.4))
    assert (row.executed, row.milliseconds, row.speed_up) == pytest.approx((0.5, 200, 2))


def test_the_fastest_target_within_the_margin_is_recommended():
    points = [point(0.2, 40, 2.5, 80), point(0.3, 50, 2, 91), point(0.5, 70, 1.4, 97)]
    assert recommend(points, "AP50", 10) == (points[1], True)
    assert recommend(points, "AP50", 5) == (points[2], True)
    assert recommend(points, "AP50", 1) == (points[2], False)


def test_what_is_slower_than_dense_is_not_recommended():
    points = [point(0.2, 40, 2.5, 60), point(0.7, 120, 0.9, 99)]
    assert recommend(points, "AP50", 10) == (points[0], False)
    assert recommend(points[1:], "AP50", 10) == (None, False)
    assert recommend([point(0.2, 40, 2.5, math.nan)], "AP50", 10) == (None, False)


def test_break_even_is_where_the_line_meets_dense():
    executed = [1.0, 0.2, 0.4, 0.6]
    line = [0.0] + [0.1 + 0.5 * share for share in executed[1:]]
    found = break_even(recording(executed, line, dense=0.5))
    assert (found.base, found.slope) == pytest.approx((100, 500))
    assert (found.dense, found.executed) == pytest.approx((500, 0.8))


@pytest.mark.parametrize("executed", [[1.0, 0.3, 0.3, 0.3], [1.0, 0.2, 0.4, 0.6]])
def test_no_break_even_where_the_times_do_not_tell(executed):
    assert break_even(recording(executed, [0.5, 0.4, 0.3, 0.2], dense=0.5)) is None
