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


def assert_alike(logits, gain, drawn, executed, evidence=None):
    learner = GainLearner(ExpectedGain(target=0.4), target=0.4, update_every=9)
    reference = OnlineLearner.learn
    decision = Decision(drawn, logits, evidence=evidence)
    wanted = [reference(learner, decision, gain, executed=executed) for _ in range(2)]
    moving_cost = torch.tensor(0.4, device=DEVICE)
    maps = [x.to(DEVICE) for x in (logits, gain, executed)]
    for want in wanted:
        known = None if evidence is None else evidence.to(DEVICE)
        found, gradient, number = report_triton(*maps, moving_cost, 0.9, known)
        for name, value in found.items():
            expected = want[name].detach()
            torch.testing.assert_close(value.cpu(), expected, rtol=1e-4, atol=1e-6, msg=name)
    logits = logits.clone().requires_grad_()
    decision = Decision(drawn, logits, evidence=evidence)
    losses, _ = learner._teach(decision, *_usable(gain, executed))
    (expected,) = torch.autograd.grad(losses.sum(), logits)
    torch.testing.assert_close(gradient.cpu(), expected, rtol=1e-4, atol=1e-6)
    assert number == gain.isfinite().flatten(1).all(1).sum()
    return found


def _usable(gain, executed):
    usable = gain.isfinite().flatten(1).all(1)[:, None, None]
    return torch.where(usable, gain, 0.0), executed, usable


@pytest.mark.parametrize("streams, grid_shape", [(1, (1, 1)), (3, (3, 5)), (1, (8, 16))])
def test_the_report_is_that_of_the_reference(streams, grid_shape):
    found = assert_alike(*frame(streams, grid_shape))
    assert grid_shape == (1, 1) or (found["loss"] > 0 and found["moving_cost"] != 0.4)


@pytest.mark.parametrize("still", [0, 1, 2])
def test_evidence_counts_as_in_the_reference(still):
    """Also of streams whose pictures stand still."""
    evidence = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(3))
    evidence[:still] = 0
    found = assert_alike(*frame(), evidence)
    assert found["gain"] > 0 and (found["loss"] > 0) == (still < 2)


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


@pytest.mark.parametrize("update_every", [9, 1])
def test_the_learner_learns_as_without_kernels(monkeypatch, update_every):
    monkeypatch.setattr("blockcopy_d2.policy.gain_learner.triton_runs_on", lambda device: True)
    logits, gain, drawn, executed = (x.to(DEVICE) for x in frame())
    features = torch.rand(2, 8, 3, 5, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    learners = []
    for learn in (GainLearner.learn, OnlineLearner.learn):
        policy = ExpectedGain(target=0.4).to(DEVICE)
        learner = GainLearner(policy, target=0.4, update_every=update_every)
        for _ in range(3):
            weights = policy.network.correction.view(1, -1, 1, 1)
            decision = Decision(drawn, logits + (features * weights).sum(dim=1))
            told = learn(learner, decision, gain, executed=executed)
        learners.append((learner, told, policy.network.correction.detach()))
    (learner, found, weights), (other, want, expected) = learners
    assert learner.frames == other.frames == 3 and found.keys() == want.keys()
    for name, value in want.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        torch.testing.assert_close(found[name], value.detach(), rtol=1e-4, atol=1e-5, msg=name)
    torch.testing.assert_close(weights, expected, rtol=1e-3, atol=1e-5)
    assert weights.any() == (update_every == 1)


def test_an_update_needs_an_autograd_graph(monkeypatch):
    monkeypatch.setattr("blockcopy_d2.policy.gain_learner.triton_runs_on", lambda device: True)
    learner = GainLearner(ExpectedGain(target=0.4).to(DEVICE), target=0.4, update_every=1)
    logits, gain, drawn, executed = (x.to(DEVICE) for x in frame())
    with pytest.raises(RuntimeError, match="no autograd graph"):
        learner.learn(Decision(drawn, logits), gain, executed=executed)
    assert learner.frames == 0
