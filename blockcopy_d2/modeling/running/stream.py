"""
What is remembered of a video between its frames.

Shape shorthand in this module:

    N: streams of a batch
    GH, GW: rows and columns of the block grid
    h, w: policy resolution, P x P pixels per block
    K: classes of the task network's output
"""

import logging
from collections import OrderedDict
from collections.abc import Hashable

import torch
from torch.nn import functional as F

from blockcopy_d2.config_key import whole
from blockcopy_d2.sparse import StreamState


class StreamBatch:
    """
    N videos in progress that are run together, one frame of each per tick, all of one size. Every
    stream has a slot with its own features and history; one that ends leaves its slot to the next
    by :meth:`reset`. It belongs to the videos, not to the model: one model serves any number of
    batches, in any order.

    The tensors are None before the first frame, and live on the model's device.

    Attributes:
        num_streams (int): N.
        counts (list[int]): frames so far, of every stream.
        policies (list[Policy] or None): of every stream; None for that of the model.
        features (StreamState): feature caches of the block-sparse modules.
        weights_version (int or None): of the model that ran the last frame, see
            :class:`BlockCopyVideoModel`.
        lost (bool): the features of a video in progress are gone: its next frame executes all
            blocks, whatever the policy or the caller wants.
        graph (FrameGraph or None): what runs the frames, where they are replayed. It survives a
            :meth:`reset`, with the features, for a video of the same size.
        outputs (list): the last output of every stream as information gain compares it.
        image_size (tuple[int, int] or None): of the frames, as the network takes them.
        canvas_size (tuple[int, int] or None): H, W, with their padding.
        frame (Tensor): float (N, 3, h, w), the last frame.
        frame_state (Tensor): float (N, 3, h, w), the pixels of each block when it was last
            executed, H_t of eq. 2.
        painted (Tensor): float (N, K, h, w) in [0, 1], the last output as the policy sees it.
        active (Tensor): bool (N, GH, GW), the blocks executed last.
        age (Tensor): int32 (N, GH, GW), frames since each block was executed; 0 for those executed
            last.
        frame_index (Tensor): int64 (N,), ``counts`` on the device.
        motion_features (MotionFeatures or None): what is kept of the last frame to estimate motion.
        broken (Tensor): bool (N,), whether the last frame left features that are not finite.
    """

    def __init__(self, num_streams, *, policies=None):
        """
        Args:
            num_streams (int): N, at least 1.
            policies (list[Policy] or None): one for every stream, instead of the model's.
        """
        if num_streams < 1 or (policies is not None and len(policies) != num_streams):
            raise ValueError(
                f"A batch of {num_streams} streams with"
                f" {'no' if policies is None else len(policies)} policies of their own; expected"
                " at least one stream, and a policy for every stream or none at all."
            )
        self.num_streams = num_streams
        self.policies = policies
        self.features = StreamState()
        self.graph = None
        self.weights_version = None
        self.reset()

    def reset(self, slot=None):
        """
        Forget a video; the next frame in its slot executes all blocks.

        Args:
            slot (int or None): None for all of them, which may then change size.

        Raises:
            ValueError: there is no such slot.
        """
        if slot is not None:
            slot = whole(0, least=0, most=self.num_streams - 1).check("slot", slot)
        if slot is not None and self.num_streams > 1 and self.canvas_size is not None:
            self.counts[slot] = 0
            self.outputs[slot] = None
            self.frame_index[slot] = 0
            return
        self.lost = False
        if self.graph is None:
            self.features.reset()
            self.image_size = self.canvas_size = None
        self.counts = [0] * self.num_streams
        self.outputs = [None] * self.num_streams
        self.frame = self.frame_state = self.painted = None
        self.active = self.age = self.frame_index = self.broken = None
        self.motion_features = None

    def release(self):
        """Forget the videos, and let go of all memory."""
        self.graph = None
        self.reset()

    def lose(self):
        """Let go of all memory in the middle of the videos, which go on with a whole frame."""
        size = self.image_size, self.canvas_size
        lost = self.lost or self.started
        self.release()
        self.image_size, self.canvas_size = size
        self.lost = lost

    @property
    def started(self):
        """bool: whether any stream has had a frame."""
        return any(self.counts)

    def advance(self, *, frame, painted, seen, active, broken, present):
        """
        Take note of a frame of every stream.

        Args:
            frame (Tensor): float (N, 3, h, w), finite.
            painted (Tensor): float (N, K, h, w), finite, the output as the policy sees it.
            seen (list): the output of every stream as information gain compares it.
            active (Tensor): bool (N, GH, GW), the blocks that were executed.
            broken (Tensor): bool (N,), whether anything was not finite.
            present (list[bool]): the streams that had a frame; the others stay as they are.
        """
        if self.frame is None:
            self.frame, self.frame_state = torch.zeros_like(frame), torch.zeros_like(frame)
            self.painted, self.active = torch.zeros_like(painted), torch.zeros_like(active)
            self.age = torch.zeros_like(active, dtype=torch.int32)
            self.broken = torch.zeros_like(broken)
            self.frame_index = torch.zeros_like(broken, dtype=torch.int64)
        executed = F.interpolate(active[:, None].float(), size=frame.shape[-2:]) > 0
        after = {
            "frame": frame,
            "frame_state": torch.where(executed, frame, self.frame_state),
            "painted": painted,
            "active": active,
            "age": torch.where(active, 0, self.age + 1),
            "broken": broken,
            "frame_index": self.frame_index + 1,
        }
        for name, value in after.items():
            if not all(present):
                value = torch.where(self.mask(present, value), value, getattr(self, name))
            setattr(self, name, value)
        for n in range(self.num_streams):
            if present[n]:
                self.outputs[n] = seen[n]
                self.counts[n] += 1

    def mask(self, flags, like):
        """
        Returns:
            Tensor: bool (N, 1, ...), a flag for every stream, to go with the tensor ``like``.
        """
        flags = torch.tensor(flags, device=like.device)
        return flags.view(-1, *[1] * (like.dim() - 1))


class VideoStream(StreamBatch):
    """One video in progress: a batch of a single stream."""

    def __init__(self, *, policy=None):
        """
        Args:
            policy (Policy or None): the stream's own, instead of the model's.
        """
        super().__init__(1, policies=None if policy is None else [policy])

    @property
    def frames(self):
        """int: number of frames so far."""
        return self.counts[0]


# Any number that rises will do, such as a time.
_INDEX = whole(0, least=0, most=2**63 - 1)
# Ids of dropped videos that are remembered, to tell when one of them goes on.
_MAX_DROPPED = 10_000


class StreamPool:
    """
    The streams a model keeps, by video id. The least recently used one goes first. The first time
    that a video goes on whose stream has gone, a warning tells: with more videos in turn than
    there is room for, every frame executes all blocks.
    """

    def __init__(self, max_streams):
        """
        Args:
            max_streams (int): at least 1.
        """
        self.max_streams = max_streams
        self._streams = OrderedDict()
        self._dropped = OrderedDict()
        self._has_warned = False

    def __len__(self):
        return len(self._streams)

    def get(self, video_id, frame_index):
        """
        Args:
            video_id (str): or anything else that is hashable.
            frame_index (int or None): 0 starts the video anew.

        Returns:
            VideoStream: of this video, a fresh one if it is new.

        Raises:
            ValueError: of another type.
        """
        if video_id is None or not isinstance(video_id, Hashable):
            raise ValueError(
                f"The video_id of a frame is {video_id!r}; expected a name, such as 'camera 1', or"
                " no video_id at all for a still image."
            )
        if frame_index is not None:
            frame_index = _INDEX.check("frame_index", frame_index)
        stream = self._streams.get(video_id)
        if stream is None:
            if video_id in self._dropped:
                self._note_return(video_id, goes_on=frame_index != 0)
            stream = self._streams[video_id] = self._unused()
        elif frame_index == 0:
            stream.reset()
        self._streams.move_to_end(video_id)
        return stream

    def _unused(self):
        """VideoStream: with the memory of the one that goes, if one has to."""
        if len(self._streams) < self.max_streams:
            return VideoStream()
        video_id, stream = self._streams.popitem(last=False)
        self._dropped[video_id] = None
        if len(self._dropped) > _MAX_DROPPED:
            self._dropped.popitem(last=False)
        stream.reset()
        return stream

    def _note_return(self, video_id, *, goes_on):
        if goes_on and not self._has_warned:
            # All that are here, and all that were dropped after it, had a frame since its last.
            in_turn = len(self._streams) + len(self._dropped) - list(self._dropped).index(video_id)
            logging.getLogger(__name__).warning(
                "%d videos take turns, but MODEL.BLOCKCOPY.MAX_STREAMS is %d: the features of video"
                " %r were dropped before its next frame, so each such frame executes all blocks."
                " Set MODEL.BLOCKCOPY.MAX_STREAMS to %d or more, or run fewer videos at once.",
                in_turn,
                self.max_streams,
                video_id,
                in_turn,
            )
            self._has_warned = True
        del self._dropped[video_id]

    def clear(self):
        self._streams.clear()
        self._dropped.clear()
