import math

import pytest
import torch

from blockcopy_d2.modeling import due_for_refresh

GRID = (3, 5)
BLOCKS = 15


def run(period, policy, frames=60):
    """
    Yields, of every frame after a first one with all blocks, the refreshed blocks, the policy's,
    and the ages after it.
    """
    age = torch.zeros(1, *GRID, dtype=torch.int32)
    for frame in range(1, frames):
        active = policy(frame)
        refreshed = due_for_refresh(active, age, period)
        age = torch.where(active | refreshed, 0, age + 1)
        yield refreshed, active, age


def nothing(frame):
    return torch.zeros(1, *GRID, dtype=torch.bool)


def some(frame):
    generator = torch.Generator().manual_seed(frame)
    return torch.rand(1, *GRID, generator=generator) < 0.3


def half_at_once(frame):
    active = nothing(frame)
    active[:, :, :3] = frame % 9 == 4
    return active


@pytest.mark.parametrize("policy", [nothing, some, half_at_once])
@pytest.mark.parametrize("period", [1, 2, 4, 7, 15, 20])
def test_no_block_grows_old_and_no_frame_spikes(period, policy):
    most = math.ceil(BLOCKS / period)
    for refreshed, active, age in run(period, policy):
        assert age.max() <= period - 1
        assert refreshed.sum() <= most
        assert not (refreshed & active).any()


@pytest.mark.parametrize("period", [3, 5, 15])
def test_a_full_frame_is_refreshed_in_order_and_evenly(period):
    per_frame = math.ceil(BLOCKS / period)
    order, counts = [], []
    for refreshed, _, _ in run(period, nothing, frames=1 + 2 * period):
        order += refreshed.flatten().nonzero()[:, 0].tolist()
        counts.append(int(refreshed.sum()))
    assert order == [block % BLOCKS for block in range(len(order))]
    assert counts[0] in (0, per_frame) and set(counts[1:]) <= {per_frame}


def test_blocks_that_the_policy_runs_in_time_are_left_to_it():
    def every_third(frame):
        active = nothing(frame)
        active.view(-1)[frame % 3 :: 3] = True
        return active

    assert not any(refreshed.any() for refreshed, _, _ in run(12, every_third))


def test_streams_of_a_batch_are_refreshed_for_themselves():
    age = torch.zeros(2, *GRID, dtype=torch.int32)
    age[1] = 3
    refreshed = due_for_refresh(torch.zeros(2, *GRID, dtype=torch.bool), age, 7)
    assert not refreshed[0].any() and refreshed[1].sum() == 3
