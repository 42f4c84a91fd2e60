"""
The step of a policy's learner as CUDA graphs.

Shape shorthand in this module:

    N: streams of a batch
    n: streams that the policy decides for
    GH, GW: rows and columns of the block grid
"""

import torch
from torch.func import functional_call

from blockcopy_d2.kernels.graph import CapturedFunction
from blockcopy_d2.kernels.packing import PackedCopies
from blockcopy_d2.policy import Decision

from .batch_task import block_gains
from .history import copy_tensors, flags, map_tensors, select_stream
from .timing import clock_of

__all__ = ["CapturedLearning"]

# Steps before one is captured, in which libraries choose, compile and allocate.
_WARM_STEPS = 2


class CapturedLearning:
    """Teaches one policy from the frames of its streams, in the memory of a :class:`FrameGraph`."""

    def __init__(self, learner, policy, slots=slice(None), present=None, *, pool=None):
        """
        Args:
            learner (OnlineLearner): the only learner of the policy.
            policy (Policy):
            slots (slice): slots in the batch of the n streams that use the policy.
            present (Tensor or None): bool (N,), the streams that have a frame; None: all.
            pool (tuple or None): memory pool of the streams' graphs; None on a device without any.
        """
        self._learner, self._policy, self._pool = learner, policy, pool
        self._slots, self._present = slots, present
        self._settings = _settings(learner)
        self._functions = {}
        self._gain = self._clock = None
        # One capture for each kind of frame: frames that update the weights, frames that end with
        # the weights of a waiting update, and all others.
        self._told = {}
        # Copies from the latest frame whose update waits. It is computed beside later frames.
        self._kept = None
        self._side = self._side_pool = None

    def teaches(self, learner, policy):
        """
        Returns:
            bool: whether this object teaches them. False after a setting of the learner changed,
            other than its target.
        """
        return (
            self._learner is learner
            and self._policy is policy
            and self._settings == _settings(learner)
        )

    def __call__(self, model, memory, timer):
        """
        Learn from the latest frames that the policy decided.

        Args:
            model (BlockCopyVideoModel):
            memory (StreamMemory): memory of the batch.
            timer (StageTimer): timer of the frames.

        Returns:
            dict[str, Tensor]: see :meth:`OnlineLearner.learn`.
        """
        learner = self._learner
        frames, updates, takes_over = learner.frames, learner.wants_graph(), learner.takes_over()
        kind = (updates, takes_over)
        if updates or takes_over:
            learner.updates.wait()
        self._learn(model, memory, kind)
        if updates and learner.delay:
            self._update_beside()
        # A replay counts on the device only.
        learner.frames = frames + 1
        names, copies = self._told[kind]
        values, times = copies.take()
        timer.add_times((["information_gain"], ["policy_update"]), lambda: times)
        return dict(zip(names, values, strict=True))

    def _learn(self, model, memory, kind):
        """Finds the gain and learns from it, as one graph."""
        if self._clock is None:
            self._clock = clock_of(memory.cut.device, 2)

        def run():
            self._clock.mark(0)
            self._find_gain(model, memory)
            self._clock.mark(1)
            metrics = self._observe(memory, kind)
            self._clock.mark(2)
            self._tell(kind, metrics)

        self._call(kind, run, self._pool)

    def _call(self, key, function, pool):
        captured = self._functions.setdefault(key, CapturedFunction(pool=pool))
        if pool is not None and captured.calls == _WARM_STEPS:
            captured.capture(function)
        captured(function)

    def _find_gain(self, model, memory):
        slots, history = self._slots, memory.history
        seen, last_seen = (select_stream(x, slots) for x in (memory.seen, memory.last_seen))
        streams, *grid_shape = history.active[slots].shape
        if self._policy.wants_gain:
            # Measured already for the history, in the executed blocks.
            gain = history.gain[slots]
        else:
            gain = block_gains(model.task, seen, last_seen, streams, tuple(grid_shape))
        # First frames have no decision, and the memory of absent streams holds an older frame.
        left_out = memory.broken | memory.cut | (history.frame_index <= 1)
        if self._present is not None:
            left_out = left_out | ~self._present
        self._gain = gain.masked_fill(flags(left_out[slots], gain), torch.nan)

    def _observe(self, memory, kind):
        slots, leaves, evidence, (updates, _) = self._slots, None, None, kind
        logits, drawn, executed = memory.logits[slots], memory.drawn[slots], memory.history.active
        executed, later = executed[slots], updates and self._learner.delay > 0
        if updates:
            observation = select_stream(memory.observation(), slots)
            evidence = self._policy.evidence(observation)
            if later:
                self._keep(observation, (drawn, executed, self._gain))
            else:
                logits, leaves = _logits_to_learn_from(self._policy.network, observation)
        decision = Decision(active=drawn, logits=logits, evidence=evidence)
        return self._learner.learn(
            decision, self._gain, executed=executed, leaves=leaves, later=later
        )

    def _tell(self, kind, metrics):
        """Copies the metrics (dict[str, Tensor]) of a frame, and its times."""
        values = torch.stack([value.float() for value in metrics.values()])
        if kind not in self._told:
            self._told[kind] = list(metrics), PackedCopies([values, self._clock.times])
        self._told[kind][1].fill([values, self._clock.times])

    def _keep(self, observation, tensors):
        """Copies the inputs of an update to memory that later frames do not write to."""
        if self._kept is None:
            self._kept = map_tensors(torch.clone, observation), [x.clone() for x in tensors]
            return
        copy_tensors(list(self._kept), [observation, list(tensors)])

    def _update_beside(self):
        """Computes the update on a CUDA stream of its own, from these copies."""
        if not self._kept[0].frame.is_cuda:
            self._call("update", self._update, self._pool)
            return
        if self._side is None:
            # Graphs of one pool must not run at the same time.
            self._side = torch.cuda.Stream()
            self._side_pool = torch.cuda.graph_pool_handle()
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            self._call("update", self._update, self._side_pool)
            self._learner.updates.computed_beside(self._side.record_event(), self)

    def _update(self):
        observation, (drawn, executed, gain) = self._kept
        logits, leaves = _logits_to_learn_from(self._policy.network, observation)
        evidence = self._policy.evidence(observation)
        decision = Decision(active=drawn, logits=logits, evidence=evidence)
        self._learner.update(decision, gain, executed=executed, leaves=leaves)


def _settings(learner):
    """Returns the settings that a capture of the learner's step cannot change."""
    group = learner.optimizer.param_groups[0]
    return (
        learner.cost_weight,
        learner.cost_momentum,
        learner.cost_form,
        learner.delay,
        *(group[name] for name in ("lr", "alpha", "eps", "weight_decay")),
    )


def _logits_to_learn_from(network, observation):
    """
    Returns logits in an autograd graph with leaves of its own. The parameters' gradient nodes
    belong to the CUDA stream on which they were first used, as long as any graph with them is
    alive, such as that of a decision that was kept. A capture must not depend on another stream.

    Returns:
        tuple[Tensor, list[Tensor]]: float (n, GH, GW), and the leaves that stand for the
        parameters.
    """
    leaves = {name: p.detach().requires_grad_() for name, p in network.named_parameters()}
    with torch.enable_grad():
        return functional_call(network, leaves, (observation,)), list(leaves.values())
