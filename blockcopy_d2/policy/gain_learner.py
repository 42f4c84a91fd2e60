"""
Learns expected gains online, from the gains of executed blocks.

Shape shorthand: N streams, GH x GW blocks.
"""

import torch
from detectron2.config import configurable

from blockcopy_d2.kernels import triton_runs_on

from .reinforce import OnlineLearner

__all__ = ["GainLearner"]


class GainLearner(OnlineLearner):
    """
    Teaches a policy to predict each executed block's share of the information gain.

    The loss of a frame is the cross-entropy between the measured shares of the gain of its executed
    blocks and those that the policy expected, a softmax of its logits over the same blocks. That is
    the likelihood of a Poisson regression of the gains, given their sum. It has no unit, so
    detectors and segmentation learn at one rate, and blocks that were not executed do not matter.

    A gain counts times the decision's evidence, the difference of the picture: a detector's noise
    has gain wherever there is an object, changed or not, and a policy that predicts it executes the
    same objects again and again. In frames that change no weight there may be no evidence, and the
    reported loss is that of the gains alone.

    The policy holds its budget by itself, so no reward depends on a price. The reported "reward"
    and "gain" are the gain of executed blocks.
    """

    @configurable
    @torch.inference_mode(False)
    def __init__(
        self,
        policy,
        *,
        target,
        update_every=4,
        learning_rate=0.01,
        weight_decay=0.3,
        delay=0,
        sync=False,
    ):
        """
        Args:
            policy (Policy): its logits are logarithms of expected gains.
            target (float): tau, passed on to the policy. May be changed at any time.
            update_every (int): frames per update of the weights.
            learning_rate (float): learning rate of RMSprop.
            weight_decay (float): leads back to the weights that the policy starts from. The loss of
                a frame counts, besides, half of it times the squared norm of the correction.
            delay, sync: see :class:`OnlineLearner`.
        """
        self._policy = policy
        super().__init__(
            policy,
            target=target,
            update_every=update_every,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            delay=delay,
            sync=sync,
        )
        # A gradient is far below 1. So RMSprop begins with steps of gradient descent, which are
        # small where frames disagree, and takes its own as evidence grows over hundreds of frames.
        # From 0 its first steps would be ten times the learning rate, wherever the first frames
        # point.
        for state in self.optimizer.state.values():
            state["square_avg"].fill_(1.0)

    @classmethod
    def from_config(cls, cfg, policy):
        settings = super().from_config(cfg, policy)
        for name in ("cost_weight", "cost_momentum", "cost_form", "count_first_frames"):
            del settings[name]
        options = cfg.MODEL.BLOCKCOPY.LEARNER
        return {
            **settings,
            "learning_rate": options.GAIN_LR,
            "weight_decay": options.GAIN_DECAY,
        }

    @property
    def target(self):
        """float: tau, the fraction of executed blocks."""
        return self._policy.target

    @target.setter
    def target(self, value):
        self._policy.target = value

    @torch.inference_mode(False)
    def learn(self, decision, gain, *, executed=None, leaves=None, later=False):
        """See :meth:`OnlineLearner.learn`."""
        updates, takes_over = self.wants_graph() and not later, self.takes_over()
        if self.sync or not triton_runs_on(gain.device):
            options = {"executed": executed, "leaves": leaves, "later": later}
            return super().learn(decision, gain, **options)
        from .gain_report_kernels import report_triton

        if updates:
            self._check_graph(decision)
        self.frames += 1
        executed = decision.active if executed is None else executed
        costs = self._moving_cost, self.cost_momentum
        logits, evidence = decision.logits.detach().float(), decision.evidence
        report, gradient, number = report_triton(logits, gain, executed, *costs, evidence)
        if updates:
            leaves = self.updates.parameters if leaves is None else leaves
            gradient = (gradient / number.clamp_min(1)).to(decision.logits.dtype)
            gradients = torch.autograd.grad(decision.logits, leaves, gradient)
            self.updates.step(gradients, report["loss"], number, waits=self.delay > 0)
        if takes_over:
            self.updates.take_over()
        skipped = self.updates.skipped.clone()
        return {**report, "reward": report["gain"], "skipped_updates": skipped}

    def _teach(self, decision, gain, executed, usable):
        taught = executed & usable
        gain = torch.where(taught, gain.clamp_min(0), 0.0).flatten(1)
        lesson = gain if decision.evidence is None else gain * decision.evidence.flatten(1)
        total = lesson.sum(dim=1, keepdim=True)
        share = lesson / total.clamp_min(torch.finfo(gain.dtype).tiny)
        with torch.enable_grad():
            # The least finite value: with -inf a stream without an executed block would become NaN.
            logits = decision.logits.masked_fill(~taught, torch.finfo(gain.dtype).min)
            log_expected = logits.flatten(1).log_softmax(dim=1)
            losses = -(share * torch.where(share > 0, log_expected, 0.0)).sum(dim=1)
        expected = log_expected.detach().exp()
        entropy = -(expected * torch.where(expected > 0, log_expected.detach(), 0.0)).sum(dim=1)
        usable = usable.flatten()
        streams = usable.sum().clamp_min(1)
        measured = gain.mean(dim=1).sum() / streams
        metrics = {
            "gain": measured,
            "reward": measured,
            "entropy": torch.where(usable, entropy, 0.0).sum() / streams,
        }
        return losses, metrics
