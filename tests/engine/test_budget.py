import itertools
import math
import statistics

import pytest

from blockcopy_d2.engine import FrameBudget


def simulate(budget, *, fixed, slope, start=1.0, follow=1.0, frames=300, noise=()):
    """
    A policy whose executed fraction goes a share ``follow`` of the way to the target every frame,
    and frames that take ``fixed + slope * fraction``.
    """
    target = executed = start
    targets, times = [], []
    extra = itertools.cycle(noise or [0.0])
    for _ in range(frames):
        executed += follow * (target - executed)
        times.append(fixed + slope * executed + next(extra))
        update = budget.update(times[-1], executed)
        target = target if update is None else update
        targets.append(target)
    return targets, times


@pytest.mark.parametrize("follow", [1.0, 0.2, 0.03])
@pytest.mark.parametrize("fixed, slope", [(0.0, 0.1), (0.02, 0.08), (0.04, 0.2)])
def test_the_median_frame_takes_the_budget(fixed, slope, follow):
    targets, times = simulate(
        FrameBudget(0.05), fixed=fixed, slope=slope, follow=follow, frames=600
    )
    assert statistics.median(times[-50:]) == pytest.approx(0.05, rel=0.03)
    assert targets[-1] == pytest.approx((0.05 - fixed) / slope, abs=0.03)


@pytest.mark.parametrize("start", [1.0, 0.05])
@pytest.mark.parametrize("follow", [1.0, 0.1])
def test_the_target_comes_from_one_side_and_does_not_oscillate(start, follow):
    targets, _ = simulate(FrameBudget(0.05), fixed=0.02, slope=0.08, start=start, follow=follow)
    steps = [b - a for a, b in zip(targets, targets[1:])]
    wrong_way = [step for step in steps if (step > 1e-9) != (start < 0.375) and abs(step) > 1e-9]
    assert sum(map(abs, wrong_way)) < 0.01 * sum(map(abs, steps))
    assert min(targets) >= min(start, 0.375) - 0.01 and max(targets) <= max(start, 0.375) + 0.01


def test_spikes_do_not_move_it():
    noise = [0.0] * 9 + [0.5]
    targets, times = simulate(FrameBudget(0.05), fixed=0.02, slope=0.08, frames=400, noise=noise)
    assert targets[-1] == pytest.approx(0.375, abs=0.02)


def test_a_budget_out_of_reach_ends_at_the_bounds():
    targets, _ = simulate(FrameBudget(0.01, least=0.05), fixed=0.02, slope=0.08)
    assert targets[-1] == 0.05
    targets, _ = simulate(FrameBudget(1.0), fixed=0.02, slope=0.08, start=0.1)
    assert targets[-1] == 1.0


def test_a_few_blocks_leave_the_lowest_target_again():
    """Most frames of a low target execute none of six blocks."""
    budget, target, counts = FrameBudget(0.05), 0.02, []
    for index in range(200):
        count = math.floor(6 * target * (index + 1)) - math.floor(6 * target * index)
        update = budget.update(0.02 + 0.04 * count / 6, count / 6)
        target = target if update is None else update
        counts.append(count)
    assert statistics.median(counts[:16]) == 0
    assert statistics.fmean(counts[100:]) == pytest.approx(0.75 * 6, abs=0.5)


def test_it_waits_until_there_is_enough_to_tell():
    budget = FrameBudget(0.05, window=8)
    assert [budget.update(0.1, 1.0) for _ in range(4)] == [None, None, None, 0.5]
    with pytest.raises(ValueError, match="must be positive"):
        FrameBudget(0)
