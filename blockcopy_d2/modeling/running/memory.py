"""
The history of streams in tensors that stay in place.

Shape shorthand in this module:

    N: streams of a batch
    GH, GW: rows and columns of the block grid
    h, w: policy resolution, P x P pixels per block
    D: slots for detections
"""

import torch

from blockcopy_d2.kernels.copying import copy_all
from blockcopy_d2.policy import Observation

from .history import map_tensors, tensors_of, viewed_anew

__all__ = ["StreamMemory"]


class StreamMemory:
    """
    The history of a :class:`StreamBatch`, and the parts of its latest frames that policies learn
    from.

    Attributes:
        history (StreamHistory): history of N streams.
        given (Tensor): bool (N, GH, GW), the blocks to execute if the policy is not asked.
        drawn, logits (Tensor): bool and float (N, GH, GW), the policies' decisions.
        cut, broken (Tensor): bool (N,), see :class:`FrameResult`.
    """

    def __init__(self, streams):
        """
        Args:
            streams (StreamBatch): streams that have had a frame.
        """
        self.history = streams.history.clone()
        self._last_seen = map_tensors(torch.clone, self.history.outputs)
        self._observation = [torch.zeros_like(x) for x in _maps(_observed(self.history))]
        active, broken = self.history.active, self.history.broken
        self.given, self.drawn = torch.zeros_like(active), torch.zeros_like(active)
        self.logits = torch.zeros(active.shape, device=active.device)
        self.cut, self.broken = torch.zeros_like(broken), broken.clone()

    def bind(self, streams):
        """Make this the history of streams."""
        streams.history = self.history

    def start_anew(self):
        """Makes the next frames the first ones of other videos."""
        self.history.frame_index.zero_()
        self.history.broken.zero_()

    def store(self, streams, before, *, cut, present=None, observation=None, decisions=None):
        """
        Store a frame of every stream.

        Args:
            streams (StreamBatch): streams after this frame, with a history in other memory.
            before (StreamHistory): history that the frame started from, moved if there is motion.
            cut (Tensor): bool (N,).
            present (Tensor or None): bool (N,), the streams that had a frame; the history of the
                others stays as it is. None: all.
            observation, decisions: see :func:`choose_blocks`; None where no policy was asked.
        """
        # Copied first: the next copies overwrite the history that they belong to.
        targets, sources = (
            [self.cut, *tensors_of(self._last_seen)],
            [cut, *tensors_of(before.outputs)],
        )
        if observation is not None:
            targets += self._observation
            sources += _maps(observation)
            sizes = [len(decision.active) for decision in decisions]
            drawn, logits = self.drawn.split(sizes), self.logits.split(sizes)
            for decision, to_drawn, to_logits in zip(decisions, drawn, logits, strict=True):
                targets.append(to_drawn)
                sources.append(decision.active)
                if decision.logits is not None:
                    targets.append(to_logits)
                    sources.append(decision.logits)
        copy_all(targets, sources)
        torch.logical_or(before.broken, streams.history.broken, out=self.broken)
        self.history.copy_(streams.history, present)
        self.bind(streams)

    @property
    def seen(self):
        """DetectionMasks of D slots or Tensor: the task's views of the latest frames."""
        return viewed_anew(self.history.outputs)

    @property
    def last_seen(self):
        """
        DetectionMasks of D slots or Tensor: the task's views of the frames before, moved if there
        is motion.
        """
        return viewed_anew(self._last_seen)

    def observation(self):
        """
        Returns:
            Observation: the policies' latest inputs.
        """
        *maps, previous_frame, gain = self._observation
        known = {"previous_frame": previous_frame, "gain": gain}
        return Observation(*maps, frame_index=self.history.frame_index - 1, **known)

    def tensors(self):
        """
        Returns:
            list[Tensor]: everything that the next frame, or learning from the latest one, depends
            on.
        """
        return [*tensors_of(self.history), *tensors_of(self._last_seen)]


def _observed(history):
    grid = history.active[:, None].float()
    maps = (history.frame, history.frame_state, history.painted, grid)
    return Observation(*maps, frame_index=0, previous_frame=history.frame, gain=history.gain)


def _maps(observation):
    maps = (observation.frame, observation.frame_state, observation.output, observation.grid)
    return [*maps, observation.previous_frame, observation.gain]
