import pytest
import torch

from blockcopy_d2.policy import (
    AllBlocks,
    EveryKthFrame,
    FrameDifference,
    MovedDifference,
    NoBlocks,
    Observation,
    RandomBlocks,
)


def observation(grid_shape=(4, 8), streams=1, frame_index=1):
    rows, columns = grid_shape
    frame = torch.zeros(streams, 3, 32 * rows, 32 * columns)
    return Observation(
        frame=frame,
        frame_state=frame.clone(),
        output=torch.zeros(streams, 1, *frame.shape[2:]),
        grid=torch.zeros(streams, 1, rows, columns),
        frame_index=frame_index,
    )


@pytest.mark.parametrize("policy, expected", [(AllBlocks(), True), (NoBlocks(), False)])
def test_all_and_none(policy, expected):
    decision = policy(observation((2, 3), streams=2))
    assert decision.active.shape == (2, 2, 3)
    assert decision.active.dtype == torch.bool
    assert (decision.active == expected).all()
    assert decision.logits is None
    assert not policy.learns


@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
def test_random_blocks_meet_the_target_on_average(target):
    policy, again = RandomBlocks(target=target, seed=5), RandomBlocks(target=target, seed=5)
    seen = observation((16, 16))
    runs = torch.cat([policy(seen).active for _ in range(20)])
    assert abs(runs.float().mean() - target) < 0.03
    assert torch.equal(runs, torch.cat([again(seen).active for _ in range(20)]))


@pytest.mark.parametrize("target, count", [(0.0, 0), (0.1, 3), (0.5, 16), (1.0, 32)])
def test_frame_difference_picks_what_changed_most(target, count):
    seen = observation(streams=2)
    change = torch.rand(2, 1, 4, 8, generator=torch.Generator().manual_seed(0))
    sign = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    seen.frame += (sign * change).repeat_interleave(32, 2).repeat_interleave(32, 3)
    active = FrameDifference(target=target)(seen).active
    for stream in range(2):
        picked = change[stream, 0][active[stream]]
        left = change[stream, 0][~active[stream]]
        assert len(picked) == count
        assert count in (0, 32) or picked.min() > left.max()


@pytest.mark.parametrize("target", [0.05, 0.29, 0.7])
def test_differences_of_a_few_blocks_meet_the_target(target):
    """A twentieth of six blocks is one in some frames, and none in most."""
    policy, counts = MovedDifference(target=target), []
    for index in range(1, 121):
        seen = observation((2, 3), streams=2, frame_index=torch.tensor([index, 1000 + index]))
        seen.age = torch.zeros(2, 2, 3, dtype=torch.int32)
        counts.append(policy(seen).active.sum(dim=(1, 2)))
    counts = torch.stack(counts)
    assert counts.max() - counts.min() == 1
    assert ((counts.sum(dim=0) - target * 6 * 120).abs() < 1 + 1e-4).all()


def test_every_kth_frame():
    policy = EveryKthFrame(period=3)
    ran = [policy(observation(frame_index=i)).active.all().item() for i in range(7)]
    assert ran == [True, False, False, True, False, False, True]
    assert not policy(observation(frame_index=4)).active.any()
    late = EveryKthFrame(period=3, phase=2)
    ran = [late(observation(frame_index=i)).active.all().item() for i in range(7)]
    assert ran == [False, False, True, False, False, True, False]
    indices = observation(streams=3, frame_index=torch.tensor([1, 2, 5]))
    assert late(indices).active.all(dim=(1, 2)).tolist() == [False, True, True]


def test_moved_difference_prefers_what_was_not_executed_for_long():
    seen = observation((2, 2))
    seen.frame[..., :32, :32] = 2.0
    seen.frame[..., 32:, 32:] = 1.5
    seen.age = torch.tensor([[[0, 30], [30, 4]]], dtype=torch.int32)
    young = MovedDifference(target=0.25, age_weight=0)(seen).active
    assert young.tolist() == [[[True, False], [False, False]]]
    aged = MovedDifference(target=0.25, age_weight=0.15)(seen).active
    assert aged.tolist() == [[[False, False], [False, True]]]
    alone = [MovedDifference(target=0.25, age_weight=0.15)(part) for part in seen.split()]
    assert torch.equal(alone[0].active, aged)
