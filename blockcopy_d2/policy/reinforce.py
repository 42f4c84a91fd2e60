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
from torch.optim.rmsprop import rmsprop

from blockcopy_d2.config import check_arguments
from blockcopy_d2.sparse import make_writable

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

    Attributes:
        frames (int): number of frames learned from so far.

    With ``sync``, the processes of a job learn one policy together: an update takes the mean over
    the streams of all of them, as if they were one batch. Every process then has to call
    :meth:`learn` or, where it has nothing to learn from, :meth:`sit_out` equally often.

    With a ``delay``, the weights change so many frames after the frame that they were learned from,
    whenever they are computed: :class:`CapturedLearning` does that beside these frames.
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
        make_writable(policy)
        self._parameters = list(policy.parameters())
        device = self._parameters[0].device
        # A captured graph reads the target from here.
        self._target_on_device = torch.tensor(0.0, device=device)
        self.target = target
        self.cost_weight = cost_weight
        self.cost_momentum = cost_momentum
        self.update_every = update_every
        self.cost_form = cost_form
        # On CUDA a step can be part of a graph, and its counters are on the device.
        self._capturable = device.type == "cuda"
        self.optimizer = torch.optim.RMSprop(
            self._parameters,
            lr=learning_rate,
            weight_decay=weight_decay,
            capturable=self._capturable,
        )
        size = sum(parameter.numel() for parameter in self._parameters)
        self._square_average = torch.zeros(size, device=device)
        steps_device = device if self._capturable else None
        self._steps = torch.zeros(len(self._parameters), device=steps_device)
        self._keep_optimizer_state()
        self.delay = delay
        # A waiting update: the change of the weights, and whether it counts as skipped.
        self._change = torch.zeros_like(self._square_average)
        self._skips = torch.zeros((), dtype=torch.int64, device=device)
        # Target minus moving cost, at the latest frame and at the latest one with a later update.
        self._shortfall = self._shortfall_of_update = torch.zeros((), device=device)
        self._beside = None
        self.frames = 0
        start = 1.0 if count_first_frames else float(target)
        self._moving_cost = torch.tensor(start, device=device)
        self._skipped_updates = torch.zeros((), dtype=torch.int64, device=device)
        self.sync = sync and comm.get_world_size() > 1
        self.count_first_frames = count_first_frames
        if count_first_frames and self.sync:
            raise ValueError(
                "MODEL.BLOCKCOPY.LEARNER.COUNT_FIRST_FRAMES is True, but processes that learn"
                " together (MODEL.BLOCKCOPY.POLICY.SYNC) begin their videos at different frames:"
                " set one of them to False."
            )
        # Costs that are not part of the moving average yet, with the number of streams.
        self._new_costs = []
        if self.sync:
            for parameter in self._parameters:
                dist.broadcast(parameter.detach(), src=0)

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
            leaves = self._parameters if leaves is None else leaves
            self._update(torch.autograd.grad(loss, leaves), loss, num_streams)
        if takes_over:
            self._take_over()
        usable_streams = usable.sum().clamp_min(1)
        return {
            "gain": gain.mean(dim=(1, 2)).sum() / usable_streams,
            **metrics,
            "cost": costs / usable_streams,
            "moving_cost": self._moving_cost.clone(),
            "loss": loss.detach(),
            "skipped_updates": self._skipped_updates.clone(),
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
        self._update(torch.autograd.grad(loss, leaves), loss, num_streams)

    def computed_beside(self, event, *owners):
        """
        Notes that an update is computed on another CUDA stream.

        Args:
            event (torch.cuda.Event): reached when it is.
            owners: objects whose memory it needs, kept alive until then.
        """
        self._beside = (event, owners)

    def wait(self):
        """Has the current CUDA stream wait for an update on another one. The host goes on."""
        beside, self._beside = self._beside, None
        if beside is not None:
            event, _ = beside
            event.wait()

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
            self._update([torch.zeros_like(p) for p in self._parameters], nothing, num_streams)
        if takes_over:
            self._take_over()

    def state_dict(self):
        """
        Returns:
            dict: the state of learning, apart from the weights of the policy and the settings of
            this learner.
        """
        self.wait()
        state = {
            "optimizer": self.optimizer.state_dict(),
            "frames": self.frames,
            "moving_cost": self._moving_cost.clone(),
            "skipped_updates": self._skipped_updates.clone(),
        }
        if self.delay:
            state["waiting"] = {"change": self._change.clone(), "skips": self._skips.clone()}
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
        self.wait()
        # Its own tensors are written below, before they are read.
        state_dict = copy.deepcopy(state_dict)
        try:
            optimizer = {**self.optimizer.state_dict(), "state": state_dict["optimizer"]["state"]}
            self.optimizer.load_state_dict(optimizer)
            self._square_average.zero_()
            self._steps.zero_()
            self._keep_optimizer_state()
            self.frames = operator.index(state_dict["frames"])
            self._moving_cost.copy_(state_dict["moving_cost"])
            self._skipped_updates.copy_(state_dict["skipped_updates"])
            waiting = state_dict.get("waiting", {"change": 0, "skips": 0})
            self._change.copy_(torch.as_tensor(waiting["change"]))
            self._skips.copy_(torch.as_tensor(waiting["skips"]))
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
            raise ValueError(
                "The state of the learner is not that of a learner of such a policy:"
                f" {type(error).__name__}: {error}"
            ) from error
        numbers = (self._square_average, self._steps, self._moving_cost)
        finite = all(x.isfinite().all() for x in (*numbers, self._change))
        if self.frames < 0 or not finite or not all((x >= 0).all() for x in numbers):
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

    def _update(self, gradients, loss, num_streams):
        """Takes a step of RMSprop, unless anything about it is not finite; keeps it if it waits."""
        self.wait()
        flat = torch.cat([*map(_flatten, gradients), loss.detach().view(1)])
        if self.sync:
            dist.all_reduce(flat)
        finite = torch.isfinite(torch.linalg.vector_norm(flat)) & (num_streams > 0)
        settings = self.optimizer.param_groups[0]
        with torch.no_grad():
            # All weights as one tensor: a dozen launches on a GPU instead of hundreds.
            before = torch.cat([_flatten(parameter) for parameter in self._parameters])
            after, square_average = before.clone(), self._square_average.clone()
            options = {name: settings[name] for name in ("lr", "alpha", "eps", "weight_decay")}
            options |= dict(foreach=False, capturable=self._capturable, momentum=0, centered=False)
            rmsprop([after], [flat[:-1]], [square_average], [], [], [self._steps], **options)
            self._square_average.copy_(torch.where(finite, square_average, self._square_average))
            if self.delay:
                self._change.copy_(torch.where(finite, after - before, 0.0))
                self._skips += ~finite
                return
            after = torch.where(finite, after, before)
            torch._foreach_copy_([_channels_last(x) for x in self._parameters], self._split(after))
        self._skipped_updates += ~finite

    @torch.no_grad()
    def _take_over(self):
        """Changes the weights by the update that waits, if there is one."""
        self.wait()
        changes = self._split(self._change)
        torch._foreach_add_([_channels_last(x) for x in self._parameters], changes)
        self._skipped_updates += self._skips
        self._change.zero_()
        self._skips.zero_()

    def _split(self, flat):
        """Splits a flat tensor into one for each parameter, channels last."""
        shapes = [_channels_last(parameter).shape for parameter in self._parameters]
        parts = flat.split([shape.numel() for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _keep_optimizer_state(self):
        """Moves the optimizer's state into one tensor for all parameters, which stays in place."""
        averages = self._split(self._square_average)
        for index, (parameter, average) in enumerate(zip(self._parameters, averages, strict=True)):
            kept = {"step": self._steps[index], "square_avg": _channels_first(average)}
            for name, value in self.optimizer.state[parameter].items():
                kept[name].copy_(value)
            self.optimizer.state[parameter] = kept


def _usable(gain):
    """
    Returns:
        tuple[Tensor, Tensor]: gains (N, GH, GW) that are finite, 0 for streams where they are not,
        and bool (N, 1, 1), which streams those are not.
    """
    gain = gain.detach()
    usable = torch.isfinite(gain).flatten(1).all(1)[:, None, None]
    return torch.where(usable, gain, 0.0), usable


def _channels_last(x):
    return x.movedim(1, -1) if x.dim() > 2 else x


def _channels_first(x):
    return x.movedim(-1, 1) if x.dim() > 2 else x


def _flatten(x):
    """Copies nothing if x is in channels_last memory format."""
    return _channels_last(x.detach()).flatten()
