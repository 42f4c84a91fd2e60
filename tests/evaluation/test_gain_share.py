import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blockcopy_d2.evaluation.gain_share import GainShare


def frame_of(blocks):
    """(1, 3, h, w) with one value per block of 4 x 4 pixels."""
    pixels = torch.tensor(blocks, dtype=torch.float32)
    pixels = pixels.repeat_interleave(4, 0).repeat_interleave(4, 1)
    return pixels.expand(1, 3, -1, -1)


def test_by_hand():
    share = GainShare()
    share.start(frame_of([[0, 0], [0, 0]]))
    gain = torch.tensor([[[0.6, 0.0], [0.3, 0.1]]])
    active = torch.tensor([[[False, False], [True, True]]])
    # Pixels change most where nothing happens (top right), then bottom left.
    share.update(frame_of([[0, 9], [5, 1]]), active, gain)
    found = share.shares()
    assert found["policy"] == pytest.approx(0.4)
    assert found["random"] == pytest.approx(0.5)
    assert found["frame_difference"] == pytest.approx(0.3)
    assert found["oracle"] == pytest.approx(0.9)


def test_frame_difference_remembers_what_it_executed_itself():
    share = GainShare()
    share.start(frame_of([[0, 0]]))
    active = torch.tensor([[[True, False]]])
    share.update(frame_of([[2, 5]]), active, torch.tensor([[[0.0, 1.0]]]))
    # It executed the right block; the left one, unchanged since, differs from its state by 2.
    share.update(frame_of([[2, 6]]), active, torch.tensor([[[1.0, 0.0]]]))
    assert share.shares()["frame_difference"] == 1
    assert share.shares()["policy"] == 0.5


def test_frames_are_weighted_by_their_gain():
    share = GainShare()
    share.start(frame_of([[0, 0]]))
    share.update(frame_of([[0, 0]]), torch.tensor([[[True, False]]]), torch.tensor([[[3.0, 0.0]]]))
    share.update(frame_of([[0, 0]]), torch.tensor([[[False, False]]]), torch.tensor([[[1.0, 0.0]]]))
    assert share.shares()["policy"] == 0.75
    assert share.shares()["random"] == 0.375


def test_gain_that_is_not_finite_is_left_out():
    share = GainShare()
    share.start(frame_of([[0, 0]]))
    share.update(
        frame_of([[1, 0]]), torch.tensor([[[True, False]]]), torch.full((1, 1, 2), torch.nan)
    )
    assert share.shares() == dict.fromkeys(GainShare.NAMES)


@given(st.integers(0, 6), st.integers(0, 2**16))
def test_the_oracle_is_the_best_choice_of_as_many_blocks(count, seed):
    generator = torch.Generator().manual_seed(seed)
    gain = torch.rand(1, 2, 3, generator=generator)
    active = torch.randperm(6, generator=generator).view(1, 2, 3) < count
    share = GainShare()
    share.start(torch.rand(1, 3, 8, 12, generator=generator))
    share.update(torch.rand(1, 3, 8, 12, generator=generator), active, gain)
    found = share.shares()
    others = ("policy", "random", "frame_difference")
    assert all(found["oracle"] >= found[name] - 1e-6 for name in others)
    assert found["random"] == pytest.approx(count / 6, abs=1e-6)


def test_merging_is_running_on_one_rank():
    torch.manual_seed(0)
    clips = [
        [(torch.rand(1, 3, 8, 8), torch.rand(1, 2, 2) < 0.5, torch.rand(1, 2, 2)) for _ in range(3)]
        for _ in range(2)
    ]

    def run(share, clip):
        share.start(clip[0][0])
        for frame, active, gain in clip[1:]:
            share.update(frame, active, gain)
        return share

    together = run(run(GainShare(), clips[0]), clips[1]).shares()
    first, second = (run(GainShare(), clip) for clip in clips)
    first.merge(second)
    assert first.shares() == pytest.approx(together)
