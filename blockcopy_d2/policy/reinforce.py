"""
Online learning of the policy by REINFORCE (section 3.5 of the paper).

Shape shorthand: N streams, GH x GW blocks.
"""

import copy
import operator
import warnings

import torch
import torch.distributed as dist
from detectron2.config import configurable
from detectron2.utils import comm
from torch.nn import functional as F

from blockcopy_d2.config import check_arguments
from blockcopy_d2.sparse import make_writable

from .weight_updates import WeightUpdates

__all__ = ["OnlineLearner"]


class OnlineLearner:
    """
    Teaches a policy which blocks are worth executing, from the information gain of every frame
    and from how far the executed fraction is from its target. The call sequence per frame is

    .. code-block:: python

        with torch.set_grad_enabled(learner.wants_graph()):
            decision = policy(observation)
        ...  # execute decision.active, compute the information gain
        metrics = learner.learn(decision, gain)

    for all frames but the first of a stream, which executes all blocks with any policy. A frame
    with values that are not finite changes no weight. The host never waits for the device.

    With ``sync``, the processes of a job learn one policy together: an update takes the mean over
    the streams of all of them, as if they were one batch. Every process then has to call
    :meth:`learn` or, where it has nothing to learn from, :meth:`sit_out` equally often.

    With a ``delay``, the weights change so many frames after the frame that they were learned from,
    whenever they are computed: :class:`CapturedLearning` does that beside these frames.

    Attributes:
        frames (int): number of frames learned from so far.
        updates (WeightUpdates): changes the weights.
    """

    @configurable
    @torch.inference_mode(False)
    def __init__(
        self,
        policy,
        *,
        target,
        cost_weight=5.0,
        cost_momentum=0.9,
        update_every=4,
        learning_rate=1e-4,
        weight_decay=1e-3,
        cost_form="paper",
        count_first_frames=False,
        delay=0,
        sync=False,
    ):
        """
        Args:
            policy (Policy): one that learns, on the device where it will stay.
            target (float): tau, the fraction of blocks to execute. May be changed at any time.
            cost_weight (float): gamma of eq. 8.
            cost_momentum (float): mu of eq. 11.
            update_every (int): frames per update of the weights.
            learning_rate, weight_decay (float): learning rate and weight decay of RMSprop.
            cost_form (str): "paper", or "code" for the authors' public code, where the cost
                reward is (tau - M) |tau - M| and the loss the mean over blocks, not the sum.
            count_first_frames (bool): let the moving cost start at 1 and count the first frames of
                videos, as the authors' code does; not with ``sync``.
            delay (int): frames for which an update waits, fewer than ``update_every``.
            sync (bool): learn one policy in all processes; they start from the first one's.

        Raises:
            ValueError: if the policy does not learn, or an argument is out of its range.
        """
        if not policy.learns:
            raise ValueError(f"{type(policy).__name__} has nothing to learn; use LearnedPolicy.")
        check_arguments(
            "MODEL.BLOCKCOPY.LEARNER",
            cost_weight=cost_weight,
            cost_momentum=cost_momentum,
            update_every=update_every,
            lr=learning_rate,
            weight_decay=weight_decay,
            cost_form=cost_form,
            count_first_frames=count_first_frames,
            delay=delay,
        )
        if delay >= update_every:
            raise ValueError(
                f"MODEL.BLOCKCOPY.LEARNER.DELAY is {delay}, but one update follows another after"
                f" {update_every} frames (UPDATE_EVERY): set a smaller DELAY."
            )
        check_arguments("MODEL.BLOCKCOPY.POLICY", sync=sync)
        self.sync = sync and comm.get_world_size() > 1
        if count_first_frames and self.sync:
            raise ValueError(
                "MODEL.BLOCKCOPY.LEARNER.COUNT_FIRST_FRAMES is True, but processes that learn"
                " together (MODEL.BLOCKCOPY.POLICY.SYNC) begin their videos at different frames:"
                " set one of them to False."
            )
        make_writable(policy)
        self.updates = WeightUpdates(
            policy.parameters(),
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            sync=self.sync,
        )
        device = self.updates.parameters[0].device
        # A captured graph reads the target from here.
        self._target_on_device = torch.tensor(0.0, device=device)
        self.target = target
        self.cost_weight = cost_weight
        self.cost_momentum = cost_momentum
        self.update_every = update_every
        self.cost_form = cost_form
        self.count_first_frames = count_first_frames
        self.delay = delay
        # Target minus moving cost, at the latest frame and at the latest one with a later update.
        self._shortfall = self._shortfall_of_update = torch.zeros((), device=device)
        self.frames = 0
        start = 1.0 if count_first_frames else float(target)
        self._moving_cost = torch.tensor(start, device=device)
        # Costs that are not part of the moving average yet, with the number of streams.
        self._new_costs = []

    @classmethod
    def from_config(cls, cfg, policy):
        options = cfg.MODEL.BLOCKCOPY
        return {
            "policy": policy,
            "target": options.TARGET,
            "cost_weight": options.LEARNER.COST_WEIGHT,
            "cost_momentum": options.LEARNER.COST_MOMENTUM,
            "update_every": options.LEARNER.UPDATE_EVERY,
            "learning_rate": options.LEARNER.LR,
            "weight_decay": options.LEARNER.WEIGHT_DECAY,
            "cost_form": options.LEARNER.COST_FORM,
            "count_first_frames": options.LEARNER.COUNT_FIRST_FRAMES,
            "delay": options.LEARNER.DELAY,
            "sync": options.POLICY.SYNC,
        }

    @property
    def target(self):
        """float: tau, the fraction of blocks to execute."""
        return self._target

    @target.setter
    def target(self, value):
        check_arguments(target=value)
        self._target = float(value)
        self._target_on_device.fill_(self._target)

    @property
    def optimizer(self):
        """torch.optim.RMSprop: has the learning rate and weight decay."""
        return self.updates.optimizer

    def wants_graph(self):
        """
        Returns:
            bool: whether the next frame updates the weights, so that the policy has to run with
            gradients enabled.
        """
        return (self.frames + 1) % self.update_every == 0

    def takes_over(self):
        """
        Returns:
            bool: whether the next frame ends with the weights of an update that waited.
        """
        return self.delay > 0 and (self.frames + 1) % self.update_every == self.delay

    @torch.inference_mode(False)
    def learn(self, decision, gain, *, executed=None, leaves=None, later=False):
        """
        Learn from one frame.

        Args:
            decision (Decision): the policy's latest, of N streams.
            gain (Tensor): float (N, GH, GW), information gain of every block, eq. 1. Streams where
                it is not finite are left out.
            executed (Tensor or None): bool (N, GH, GW), the blocks that count as cost, if they are
                not those of the decision alone.
            leaves (sequence[Tensor] or None): leaves of the decision's autograd graph, if they are
                copies of the policy's parameters, in the same order.
            later (bool): leave the update, if this frame has one, to :meth:`update`.

        Returns:
            dict[str, Tensor]: scalars on the device: "reward", "gain" and "entropy" (nats), means
            over blocks; "cost" (eq. 10), "moving_cost" (eq. 11), "loss", and "skipped_updates",
            the updates so far that were left out because something was not finite.

        Raises:
            RuntimeError: if this frame updates the weights but has no autograd graph.
        """
        updates, takes_over = self.wants_graph(), self.takes_over()
        if updates and not later:
            self._check_graph(decision)
        executed = decision.active if executed is None else executed
        gain, usable = _usable(gain)
        costs = (executed & usable).float().mean(dim=(1, 2)).sum()
        num_streams = self._count(costs, usable.sum())
        self._shortfall = self._target_on_device - self._moving_cost
        if updates and later:
            self._shortfall_of_update.copy_(self._shortfall)
        losses, metrics = self._teach(decision, gain, executed, usable)
        with torch.enable_grad():
            loss = losses.sum() / num_streams.clamp_min(1)
        if updates and not later:
            self._update(loss, leaves, num_streams)
        if takes_over:
            self.updates.take_over()
        usable_streams = usable.sum().clamp_min(1)
        return {
            "gain": gain.mean(dim=(1, 2)).sum() / usable_streams,
            **metrics,
            "cost": costs / usable_streams,
            "moving_cost": self._moving_cost.clone(),
            "loss": loss.detach(),
            "skipped_updates": self.updates.skipped.clone(),
        }

    def _check_graph(self, decision):
        if not decision.logits.requires_grad:
            raise RuntimeError(
                "This frame updates the policy, but its decision has no autograd graph. Call the"
                " policy with gradients enabled where OnlineLearner.wants_graph() is true."
            )

    @torch.inference_mode(False)
    def update(self, decision, gain, *, executed, leaves):
        """
        Take the update that :meth:`learn` left, as it would have taken it. Where the learner has a
        delay, other frames may be learned from meanwhile.

        Args:
            decision (Decision): as for :meth:`learn`, with the logits in an autograd graph.
            gain, executed, leaves: as for :meth:`learn`.
        """
        gain, usable = _usable(gain)
        num_streams = usable.sum()
        self._shortfall = self._shortfall_of_update
        losses, _ = self._teach(decision, gain, executed, usable)
        with torch.enable_grad():
            loss = losses.sum() / num_streams.clamp_min(1)
        self._update(loss, leaves, num_streams)

    def _update(self, loss, leaves, num_streams):
        leaves = self.updates.parameters if leaves is None else leaves
        gradients = torch.autograd.grad(loss, leaves)
        self.updates.step(gradients, loss, num_streams, waits=self.delay > 0)

    def _teach(self, decision, gain, executed, usable):
        """
        Args:
            decision, gain, executed: see :meth:`learn`; gains are finite.
            usable (Tensor): bool (N, 1, 1), the streams to learn from.

        Returns:
            tuple[Tensor, dict[str, Tensor]]: float (N,), the loss of every stream in the autograd
            graph of the decision, 0 for those that are not usable; and "reward", "entropy" and any
            other entries of the result of :meth:`learn` that differ.
        """
        reward = torch.where(usable, self._reward(decision.active, gain), 0.0)
        with torch.enable_grad():
            surprise = F.binary_cross_entropy_with_logits(
                decision.logits, decision.active.float(), reduction="none"
            )
            losses = (reward * surprise).flatten(1)
            losses = losses.mean(1) if self.cost_form == "code" else losses.sum(1)
        logits = decision.logits.detach()
        entropy = F.binary_cross_entropy_with_logits(logits, logits.sigmoid())
        mean_reward = reward.mean(dim=(1, 2)).sum() / usable.sum().clamp_min(1)
        return losses, {"reward": mean_reward, "entropy": entropy}

    def observe(self, *args, **kwargs):
        """Deprecated: :meth:`learn`."""
        warnings.warn(
            "OnlineLearner.observe is now OnlineLearner.learn", FutureWarning, stacklevel=2
        )
        return self.learn(*args, **kwargs)

    @torch.inference_mode(False)
    def see_first_frame(self):
        """
        Reports the first frame of a video, or of several at once: they execute all blocks, and
        nothing is learned from them.
        """
        if self.count_first_frames:
            self._moving_cost.lerp_(torch.ones_like(self._moving_cost), 1 - self.cost_momentum)

    @torch.inference_mode(False)
    def sit_out(self):
        """
        Replaces :meth:`learn` in a process that has nothing to learn from, while others of its job
        may have. Does nothing unless they learn together.
        """
        if not self.sync:
            return
        updates, takes_over = self.wants_graph(), self.takes_over()
        nothing = torch.zeros_like(self._moving_cost)
        num_streams = self._count(nothing, nothing)
        if updates:
            gradients = [torch.zeros_like(p) for p in self.updates.parameters]
            self.updates.step(gradients, nothing, num_streams, waits=self.delay > 0)
        if takes_over:
            self.updates.take_over()

    def state_dict(self):
        """
        Returns:
            dict: the state of learning, apart from the weights of the policy and the settings of
            this learner.
        """
        state = {
            **self.updates.state_dict(),
            "frames": self.frames,
            "moving_cost": self._moving_cost.clone(),
        }
        if not self.delay:
            del state["waiting"]
        return state

    @torch.inference_mode(False)
    def load_state_dict(self, state_dict):
        """
        Args:
            state_dict (dict): from :meth:`state_dict`. Settings in it, such as the learning rate,
                are ignored: this learner has its own.

        Raises:
            ValueError: it belongs to a learner of another policy, or is not finite.
        """
        # Its own tensors are written below, before they are read.
        state_dict = copy.deepcopy(state_dict)
        try:
            self.updates.load_state_dict(state_dict)
            self.frames = operator.index(state_dict["frames"])
            self._moving_cost.copy_(state_dict["moving_cost"])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
            raise ValueError(
                "The state of the learner is not that of a learner of such a policy:"
                f" {type(error).__name__}: {error}"
            ) from error
        cost = self._moving_cost
        finite = self.updates.is_valid() and cost.isfinite() and cost >= 0
        if self.frames < 0 or not finite:
            raise ValueError(
                "The state of the learner has numbers that are negative or not finite. Set"
                " MODEL.BLOCKCOPY.POLICY.WEIGHTS to an earlier checkpoint."
            )

    def _reward(self, active, gain):
        """Eq. 8, 9 and 12: float (N, GH, GW)."""
        shortfall = self._shortfall
        if self.cost_form == "code":
            shortfall = shortfall * shortfall.abs()
        value = gain + self.cost_weight * shortfall
        return torch.where(active, value, -value)

    def _count(self, costs, num_streams):
        """
        Count a frame and its cost.

        Args:
            costs, num_streams (Tensor): scalars, sum over the streams and their number.

        Returns:
            Tensor: scalar, number of streams; on frames that update the weights, of all processes
            that learn together.
        """
        updates = self.wants_graph()
        self.frames += 1
        self._new_costs.append(torch.stack([costs, num_streams.float()]))
        if self.sync and not updates:
            return num_streams
        new_costs, self._new_costs = torch.stack(self._new_costs), []
        if self.sync:
            dist.all_reduce(new_costs)
        for costs, num_streams in new_costs:
            cost = torch.where(num_streams > 0, costs / num_streams, self._moving_cost)
            self._moving_cost.lerp_(cost, 1 - self.cost_momentum)
        return num_streams


def _usable(gain):
    """
    Returns:
        tuple[Tensor, Tensor]: gains (N, GH, GW) that are finite, 0 for streams where they are not,
        and bool (N, 1, 1), which streams those are not.
    """
    gain = gain.detach()
    usable = torch.isfinite(gain).flatten(1).all(1)[:, None, None]
    return torch.where(usable, gain, 0.0), usable
