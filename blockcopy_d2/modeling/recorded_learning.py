"""The step of a policy's learner as CUDA graphs."""

import torch

from blockcopy_d2.policy import Decision

from .recorded_function import RecordedFunction

__all__ = ["RecordedLearning"]

# Steps before one is recorded, in which libraries choose, compile and allocate.
_WARM_STEPS = 2


class RecordedLearning:
    """Teaches one policy the frames of one stream, from the memory of a :class:`FrameGraph`."""

    def __init__(self, learner, policy, *, pool=None):
        """
        Args:
            learner (OnlineLearner): alone with its policy.
            policy (Policy):
            pool (tuple or None): of the stream's graphs; None on a device without any.
        """
        self._learner, self._policy, self._pool = learner, policy, pool
        self._optimizer_state = learner.optimizer.state
        self._functions = {}
        self._gain = self._names = self._values = None

    def teaches(self, learner, policy):
        """
        Returns:
            bool: whether this is for them. Not if the learner's state was loaded since: it is then
            in other memory.
        """
        return (
            self._learner is learner
            and self._policy is policy
            and self._optimizer_state is learner.optimizer.state
        )

    def __call__(self, model, memory, timer):
        """
        Learn from the latest frame, which the policy decided.

        Args:
            model (BlockCopyVideoModel):
            memory (StreamMemory): of the stream.
            timer (StageTimer): of the frame.

        Returns:
            dict[str, Tensor]: of :meth:`OnlineLearner.observe`.
        """
        learner = self._learner
        updates, frames = learner.wants_graph(), learner.frames
        stages = {
            ("information_gain",): lambda: self._find_gain(model, memory),
            ("policy_update", updates): lambda: self._observe(memory, updates),
        }
        for key, function in stages.items():
            recorded = self._functions.setdefault(key, RecordedFunction(pool=self._pool))
            if self._pool is not None and recorded.calls == _WARM_STEPS:
                recorded.record(function)
            with timer.stage(key[0]):
                recorded(function)
        # A replay counts on the device only.
        learner.frames = frames + 1
        return dict(zip(self._names, self._values.clone(), strict=True))

    def _find_gain(self, model, memory):
        gain = model.task.block_gain(memory.seen, memory.last_seen, memory.active.shape[1:])
        self._gain = gain[None].masked_fill(memory.broken | memory.cut, torch.nan)

    def _observe(self, memory, updates):
        logits = memory.logits
        if updates:
            with torch.enable_grad():
                logits = self._policy.network(memory.observation())
        decision = Decision(active=memory.drawn, logits=logits)
        metrics = self._learner.observe(decision, self._gain, executed=memory.active)
        self._names = list(metrics)
        self._values = torch.stack([value.float() for value in metrics.values()])
