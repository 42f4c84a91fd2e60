"""The learner's report by kernels: on the GPU if there is one, else interpreted."""

import pytest
import torch

pytest.importorskip("triton")

from blockcopy_d2.policy import Decision, ExpectedGain, GainLearner, OnlineLearner  # noqa: E402
from blockcopy_d2.policy.gain_report_kernels import report_triton  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def frame(streams=2, grid_shape=(3, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits, gain, drawn, executed = torch.rand(4, streams, *grid_shape, generator=generator)
    return 4 * logits, gain - 0.1, drawn < 0.5, executed < 0.6


def assert_alike(logits, gain, drawn, executed):
    learner = GainLearner(ExpectedGain(target=0.4), target=0.4, update_every=9)
    reference = OnlineLearner.learn
    decision = Decision(drawn, logits)
    wanted = [reference(learner, decision, gain, executed=executed) for _ in range(2)]
    moving_cost = torch.tensor(0.4, device=DEVICE)
    maps = [x.to(DEVICE) for x in (logits, gain, executed)]
    for want in wanted:
        found = report_triton(*maps, moving_cost, 0.9)
        for name, value in found.items():
            expected = want[name].detach()
            torch.testing.assert_close(value.cpu(), expected, rtol=1e-4, atol=1e-6, msg=name)
    return found


@pytest.mark.parametrize("streams, grid_shape", [(1, (1, 1)), (3, (3, 5)), (1, (8, 16))])
def test_the_report_is_that_of_the_reference(streams, grid_shape):
    found = assert_alike(*frame(streams, grid_shape))
    assert grid_shape == (1, 1) or (found["loss"] > 0 and found["moving_cost"] != 0.4)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_streams_that_nothing_can_be_learned_from(bad):
    logits, gain, drawn, executed = frame()
    gain[1, 2, 3] = bad
    assert_alike(logits, gain, drawn, executed)
    gain[0, 0, 0] = bad
    found = assert_alike(logits, gain, drawn, executed)
    assert found["moving_cost"] == torch.tensor(0.4) and not found["loss"]


@pytest.mark.parametrize("part", ["nothing executed", "no gain"])
def test_frames_that_teach_nothing(part):
    logits, gain, drawn, executed = frame()
    if part == "no gain":
        gain[0] = 0
    else:
        executed[0] = False
    assert_alike(logits, gain, drawn, executed)


def test_the_learner_counts_its_frames(monkeypatch):
    monkeypatch.setattr("blockcopy_d2.policy.gain_learner.triton_runs_on", lambda device: True)
    learners = []
    for learn in (GainLearner.learn, OnlineLearner.learn):
        policy = ExpectedGain(target=0.4).to(DEVICE)
        learner = GainLearner(policy, target=0.4, update_every=9)
        logits, gain, drawn, executed = (x.to(DEVICE) for x in frame())
        decision = Decision(drawn, logits.requires_grad_())
        learners.append((learner, learn(learner, decision, gain, executed=executed)))
    (learner, found), (other, want) = learners
    assert learner.frames == other.frames == 1 and found.keys() == want.keys()
    for name, value in want.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        torch.testing.assert_close(found[name], value.detach(), rtol=1e-4, atol=1e-6, msg=name)
    state, other = learner.state_dict(), other.state_dict()
    torch.testing.assert_close(state["moving_cost"], other["moving_cost"])
