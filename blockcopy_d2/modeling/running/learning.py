"""Teaches the policy from the results of frames."""

import torch

from blockcopy_d2.kernels.device import on_device
from blockcopy_d2.policy import Decision

from .result import CapturedFrameResult

__all__ = ["learn"]


@torch.inference_mode(False)
@torch.no_grad()
def learn(learner, model, results):
    """
    Teach a policy from the frames of one tick that it decided; first frames are not among them. The
    time counts to the stages "information_gain" and "policy_update" of the frames.
    :meth:`BlockCopyVideoModel.step_batch` does this for its argument ``learner``.

    Args:
        learner (OnlineLearner): learner of the policy.
        model (BlockCopyVideoModel): the model that ran the frames.
        results (sequence[FrameResult]): results of streams that share the policy.

    Returns:
        dict[str, Tensor]: the learner's report, also stored as ``learned`` in the results; empty if
        there was nothing to learn from.
    """
    any_first = any(result.is_first for result in results)
    results = [result for result in results if not result.is_first and result.was_drawn]
    with model.lock, on_device(model.device):
        if any_first:
            learner.see_first_frame()
        if not results:
            learner.sit_out()
            return {}
        learned = _learn(learner, model, results)
    for result in results:
        result.learned = learned
    return learned


def _learn(learner, model, results):
    first, timer = results[0], results[0].timer
    if isinstance(first, CapturedFrameResult) and not learner.sync:
        learned = first.learn(model, learner, results)
        if learned is not None:
            return learned
    with timer.stage("information_gain"):
        gain = torch.cat([_gain_of(model, result) for result in results])
    with timer.stage("policy_update"):
        decisions = [result.decision for result in results]
        with torch.enable_grad():
            decision = Decision(
                active=torch.cat([one.active for one in decisions]),
                logits=torch.cat([one.logits for one in decisions]),
                evidence=_joined([one.evidence for one in decisions]),
            )
        executed = torch.cat([result.grid.active for result in results])
        return learner.learn(decision, gain, executed=executed)


def _joined(maps):
    return None if any(x is None for x in maps) else torch.cat(maps)


def _gain_of(model, result):
    if result.gain is None:
        return model.information_gain(result)
    return result.gain.masked_fill(result.broken | result.cut, torch.nan)
