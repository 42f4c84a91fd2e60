"""
What is remembered of a stream between its frames, in tensors that stay where they are.

Shape shorthand in this module:

    GH, GW: rows and columns of the block grid
    h, w: policy resolution, P x P pixels per block
    D: slots for detections
"""

import dataclasses

import torch

from blockcopy_d2.policy import Observation

__all__ = ["StreamMemory"]

# What a StreamBatch keeps in tensors.
_HISTORY = ("frame", "frame_state", "painted", "active", "age", "broken", "frame_index")


class StreamMemory:
    """
    The history of a :class:`VideoStream`, and of its latest frame what the policy learns from.

    Attributes:
        given (Tensor): bool (1, GH, GW), the blocks to execute where the policy is not asked.
        drawn, logits (Tensor): bool and float (1, GH, GW), what the policy decided.
        cut, broken (Tensor): bool (1,), as of :class:`FrameResult`.
    """

    def __init__(self, stream):
        """
        Args:
            stream (VideoStream): that has had a frame.
        """
        self._history = {name: getattr(stream, name).clone() for name in _HISTORY}
        self._seen, self._last_seen = (_clone(stream.outputs[0]) for _ in range(2))
        self._observation = [torch.zeros_like(x) for x in _maps(self._observed(stream))]
        self.given, self.drawn = (torch.zeros_like(stream.active) for _ in range(2))
        self.logits = torch.zeros(stream.active.shape, device=stream.active.device)
        self.cut, self.broken = torch.zeros_like(stream.broken), stream.broken.clone()

    @staticmethod
    def _observed(stream):
        grid = stream.active[:, None].float()
        return Observation(stream.frame, stream.frame_state, stream.painted, grid, frame_index=0)

    def bind(self, stream):
        """Make this the history of a stream."""
        for name, tensor in self._history.items():
            setattr(stream, name, tensor)
        stream.outputs = [self.seen]

    def start_anew(self):
        """The next frame is the first of another video."""
        self._history["frame_index"].zero_()
        self._history["broken"].zero_()

    def store(self, stream, *, cut=None, observation=None, decision=None):
        """
        Take over a frame.

        Args:
            stream (VideoStream): brought up to date with it, in other memory.
            cut (Tensor or None): bool (1,).
            observation, decision: of the policy; None where it was not asked.
        """
        # The maps observed are of the history that comes to an end here.
        if observation is not None:
            _copy(self._observation, _maps(observation))
            self.drawn.copy_(decision.active)
            if decision.logits is not None:
                self.logits.copy_(decision.logits)
        torch.logical_or(self._history["broken"], stream.broken, out=self.broken)
        self.cut.zero_() if cut is None else self.cut.copy_(cut)
        _copy(_tensors(self._last_seen), _tensors(self._seen))
        _copy(_tensors(self._seen), _tensors(stream.outputs[0]))
        for name, tensor in self._history.items():
            tensor.copy_(getattr(stream, name))
        self.bind(stream)

    @property
    def seen(self):
        """DetectionMasks of D slots or Tensor: what the task sees of the latest frame."""
        return _anew(self._seen)

    @property
    def last_seen(self):
        """DetectionMasks of D slots or Tensor: of the frame before."""
        return _anew(self._last_seen)

    @property
    def active(self):
        """Tensor: bool (1, GH, GW), the blocks of the latest frame."""
        return self._history["active"]

    @property
    def age(self):
        """Tensor: int32 (1, GH, GW)."""
        return self._history["age"]

    def observation(self):
        """
        Returns:
            Observation: what the policy saw when it was asked last.
        """
        return Observation(*self._observation, frame_index=self._history["frame_index"] - 1)

    def history(self):
        """
        Returns:
            list[Tensor]: that the next frame depends on.
        """
        return [*self._history.values(), *_tensors(self._seen), *_tensors(self._last_seen)]


def _maps(observation):
    return observation.frame, observation.frame_state, observation.output, observation.grid


def _tensors(seen):
    if isinstance(seen, torch.Tensor):
        return [seen]
    return [x for x in (seen.masks, seen.scores, seen.classes, seen.boxes) if x is not None]


def _clone(seen):
    if isinstance(seen, torch.Tensor):
        return seen.clone()
    boxes = None if seen.boxes is None else seen.boxes.clone()
    masks, scores, classes = (x.clone() for x in (seen.masks, seen.scores, seen.classes))
    return dataclasses.replace(seen, masks=masks, scores=scores, classes=classes, boxes=boxes)


def _anew(seen):
    """What DetectionMasks have computed of their masks holds for one frame."""
    return seen if isinstance(seen, torch.Tensor) else dataclasses.replace(seen)


def _copy(targets, sources):
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
