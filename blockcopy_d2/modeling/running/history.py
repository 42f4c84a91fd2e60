"""
The history of videos in progress: their state apart from feature maps.

Shape shorthand in this module:

    N: streams of a batch
    GH, GW: rows and columns of the block grid
    h, w: policy resolution, P x P pixels per block
    K: classes of the task network's output
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blockcopy_d2.kernels.copying import copy_all
from blockcopy_d2.motion import MotionFeatures

__all__ = [
    "StreamHistory",
    "copy_tensors",
    "flags",
    "map_tensors",
    "select_stream",
    "stack_streams",
    "tensors_of",
    "viewed_anew",
    "where_present",
]


@dataclass(eq=False)
class StreamHistory:
    """
    The part of the past of N streams that their next frame depends on. Frames run operator by
    operator make a new one each; CUDA graphs write to the same one.

    Attributes:
        frame (Tensor): float (N, 3, h, w), the last frame.
        frame_state (Tensor): float (N, 3, h, w), the pixels of each block when it was last
            executed, H_t of eq. 2.
        painted (Tensor): float (N, K, h, w) in [0, 1], the last output as the policy sees it.
        active (Tensor): bool (N, GH, GW), the blocks executed last.
        age (Tensor): int32 (N, GH, GW), frames since each block was executed; 0 for blocks of the
            last frame.
        gain (Tensor): float (N, GH, GW), the information gain that each block had when it was last
            executed; negative where it is not known. Kept for policies that want it.
        account (Tensor): float (N, 2), see :class:`blockcopy_d2.policy.Decision`.
        broken (Tensor): bool (N,), whether the last frame left features that are not finite.
        frame_index (Tensor): int64 (N,), frames so far.
        outputs: the last outputs in the form that information gain compares. A list with one for
            every stream, None for a stream without a frame; or, in the memory of CUDA graphs, one
            for all streams, whose tensors have a dimension N in front.
        motion_features (MotionFeatures or None): features of the last frame, to estimate motion
            from. None without motion.
    """

    frame: Tensor
    frame_state: Tensor
    painted: Tensor
    active: Tensor
    age: Tensor
    gain: Tensor
    account: Tensor
    broken: Tensor
    frame_index: Tensor
    outputs: Any
    motion_features: MotionFeatures | None = None

    @classmethod
    def empty(cls, frame, painted, active):
        """
        Args:
            frame (Tensor): float (N, 3, h, w), an example.
            painted (Tensor): float (N, K, h, w), an example.
            active (Tensor): bool (N, GH, GW), an example.

        Returns:
            StreamHistory: that of streams without a frame.
        """
        flag = torch.zeros(len(active), dtype=torch.bool, device=active.device)
        return cls(
            frame=torch.zeros_like(frame),
            frame_state=torch.zeros_like(frame),
            painted=torch.zeros_like(painted),
            active=torch.zeros_like(active),
            age=torch.zeros_like(active, dtype=torch.int32),
            gain=torch.full_like(active, -1, dtype=torch.float32),
            account=torch.zeros(len(active), 2, device=active.device),
            broken=flag,
            frame_index=torch.zeros_like(flag, dtype=torch.int64),
            outputs=[None] * len(active),
        )

    def after(self, advanced, *, frame, active, account, outputs, motion_features, present):
        """
        Args:
            advanced (dict[str, Tensor]): parts from :func:`advance`.
            frame (Tensor): float (N, 3, h, w), finite.
            active (Tensor): bool (N, GH, GW), the blocks that were executed.
            account (Tensor): float (N, 2), see :class:`blockcopy_d2.policy.Decision`.
            outputs: outputs of every stream, as information gain compares them, in a list or as
                one.
            motion_features (MotionFeatures or None): features of the frame; of absent streams the
                last ones.
            present (sequence[bool] or None): the streams that had a frame; the others stay as they
                are. None: all had one.

        Returns:
            StreamHistory: the history after this frame.
        """
        after = {**advanced, "frame": frame, "active": active, "account": account}
        if present is not None:
            for name, value in after.items():
                after[name] = where_present(present, value, getattr(self, name))
            outputs = [new if p else old for p, new, old in zip(present, outputs, self.outputs)]
        return StreamHistory(**after, outputs=outputs, motion_features=motion_features)

    def forget(self, slot):
        """Forget the video of a stream: its next frame is the first one."""
        if isinstance(self.outputs, list):
            self.outputs[slot] = None
        # An assignment would copy a number from the host, which would wait for the device.
        self.frame_index[slot].fill_(0)
        self.broken[slot].fill_(False)

    def clone(self):
        """Returns a copy in memory of its own."""
        return map_tensors(torch.clone, self)

    def copy_(self, other, present=None):
        """
        Overwrite every tensor in place.

        Args:
            other (StreamHistory): with tensors of the same sizes.
            present (Tensor or None): bool (N,), the streams to overwrite; None: all.
        """
        copy_all(list(tensors_of(self)), list(tensors_of(other)), present)


def flags(values, like):
    """
    Args:
        values (sequence[bool] or Tensor): values of N streams.
        like (Tensor): (N, ...), on any device.

    Returns:
        Tensor: bool (N, 1, ...), to go with ``like``.
    """
    values = torch.as_tensor(values, device=like.device)
    return values.view(-1, *[1] * (like.dim() - 1))


def where_present(present, new, old):
    """
    Args:
        present: see :func:`flags`.
        new, old (Tensor): (N, ...).

    Returns:
        Tensor: ``new`` for the streams that are present, ``old`` for the others.
    """
    return torch.where(flags(present, new), new, old)


# ---------------------------------------------------------------- tensors in lists and dataclasses


def tensors_of(part):
    """
    Args:
        part: tensors, or lists, tuples and dataclasses of them. Anything else counts as having
            none.

    Yields:
        Tensor: each of them, in order.
    """
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, list | tuple):
        for x in part:
            yield from tensors_of(x)
    elif dataclasses.is_dataclass(part):
        for field in dataclasses.fields(part):
            yield from tensors_of(getattr(part, field.name))


def map_tensors(function, part):
    """
    Args:
        function (callable): a function of a tensor.
        part: see :func:`tensors_of`.

    Returns:
        The same structure with ``function`` applied to every tensor. Lists and dataclasses are new.
    """
    if isinstance(part, Tensor):
        return function(part)
    if isinstance(part, list | tuple):
        return type(part)(map_tensors(function, x) for x in part)
    if dataclasses.is_dataclass(part):
        names = [field.name for field in dataclasses.fields(part)]
        values = {name: map_tensors(function, getattr(part, name)) for name in names}
        return dataclasses.replace(part, **values)
    return part


def viewed_anew(part):
    """
    Returns the same tensors in new objects, without the values that DetectionMasks derived from
    their masks: those are valid until the masks are written to.
    """
    return map_tensors(lambda x: x, part)


def select_stream(part, n):
    """
    Args:
        part: part of N streams, see :func:`tensors_of`.
        n (int or slice):

    Returns:
        The part of one stream, without the dimension N; or of several.
    """
    return map_tensors(lambda x: x[n], part)


def stack_streams(parts):
    """
    Args:
        parts (list): parts of N streams, all of one structure, see :func:`tensors_of`.

    Returns:
        One part for all streams, whose tensors have a dimension N in front.
    """
    tensors = zip(*map(tensors_of, parts), strict=True)
    return map_tensors(lambda _: torch.stack(next(tensors)), parts[0])


def copy_tensors(target, source):
    """Overwrites every tensor of ``target`` by that of ``source``, which has the same structure."""
    copy_all(list(tensors_of(target)), list(tensors_of(source)))
