"""
What is remembered of a stream between its frames, in tensors that stay where they are.

Shape shorthand in this module:

    GH, GW: rows and columns of the block grid
    h, w: policy resolution, P x P pixels per block
    D: slots for detections
"""

import torch

from blockcopy_d2.policy import Observation

from .history import copy_tensors, map_tensors, tensors_of

__all__ = ["StreamMemory"]


class StreamMemory:
    """
    The history of a :class:`VideoStream`, and of its latest frame what the policy learns from.

    Attributes:
        history (StreamHistory): of one stream.
        given (Tensor): bool (1, GH, GW), the blocks to execute where the policy is not asked.
        drawn, logits (Tensor): bool and float (1, GH, GW), what the policy decided.
        cut, broken (Tensor): bool (1,), as of :class:`FrameResult`.
    """

    def __init__(self, stream):
        """
        Args:
            stream (VideoStream): that has had a frame.
        """
        self.history = stream.history.clone()
        self._last_seen = map_tensors(torch.clone, self.history.outputs[0])
        self._observation = [torch.zeros_like(x) for x in _maps(_observed(self.history))]
        active, broken = self.history.active, self.history.broken
        self.given, self.drawn = torch.zeros_like(active), torch.zeros_like(active)
        self.logits = torch.zeros(active.shape, device=active.device)
        self.cut, self.broken = torch.zeros_like(broken), broken.clone()

    def bind(self, stream):
        """Make this the history of a stream."""
        stream.history = self.history

    def start_anew(self):
        """The next frame is the first of another video."""
        self.history.frame_index.zero_()
        self.history.broken.zero_()

    def store(self, stream, before, *, cut=None, observation=None, decision=None):
        """
        Take over a frame.

        Args:
            stream (VideoStream): brought up to date with it, in other memory.
            before (StreamHistory): that the frame started from, moved where there is motion.
            cut (Tensor or None): bool (1,).
            observation, decision: of the policy; None where it was not asked.
        """
        # The maps observed are of the history that comes to an end here.
        if observation is not None:
            copy_tensors(self._observation, _maps(observation))
            self.drawn.copy_(decision.active)
            if decision.logits is not None:
                self.logits.copy_(decision.logits)
        torch.logical_or(before.broken, stream.history.broken, out=self.broken)
        self.cut.zero_() if cut is None else self.cut.copy_(cut)
        copy_tensors(self._last_seen, before.outputs[0])
        self.history.copy_(stream.history)
        self.bind(stream)

    @property
    def seen(self):
        """DetectionMasks of D slots or Tensor: what the task sees of the latest frame."""
        return _anew(self.history.outputs[0])

    @property
    def last_seen(self):
        """DetectionMasks of D slots or Tensor: of the frame before, moved where there is motion."""
        return _anew(self._last_seen)

    def observation(self):
        """
        Returns:
            Observation: what the policy saw when it was asked last.
        """
        return Observation(*self._observation, frame_index=self.history.frame_index - 1)

    def tensors(self):
        """
        Returns:
            list[Tensor]: that the next frame depends on, and what is learned of the latest.
        """
        return [*tensors_of(self.history), *tensors_of(self._last_seen)]


def _observed(history):
    grid = history.active[:, None].float()
    return Observation(history.frame, history.frame_state, history.painted, grid, frame_index=0)


def _maps(observation):
    return [observation.frame, observation.frame_state, observation.output, observation.grid]


def _anew(seen):
    """What DetectionMasks have computed of their masks holds for one frame."""
    return map_tensors(lambda x: x, seen)
