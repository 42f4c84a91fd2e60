"""
What is remembered of a video between its frames.

Shape shorthand: N streams of a batch.
"""

import logging
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import fields, replace

from blockcopy_d2.config_key import whole
from blockcopy_d2.sparse import StreamState

from .history import StreamHistory, select_stream


class StreamBatch:
    """
    N videos in progress that are run together, one frame of each per tick, all of one size. Every
    stream has a slot with its own features and history; one that ends leaves its slot to the next
    by :meth:`reset`. It belongs to the videos, not to the model: one model serves any number of
    batches, in any order.

    What the history has can be read here, too: ``streams.age``.

    Attributes:
        num_streams (int): N.
        counts (list[int]): frames so far, of every stream.
        history (StreamHistory or None): None before the first frame.
        policies (list[Policy] or None): of every stream; None for that of the model.
        features (StreamState): feature caches of the block-sparse modules.
        weights_version (int or None): of the model that ran the last frame, see
            :class:`BlockCopyVideoModel`.
        lost (bool): the features of a video in progress are gone: its next frame executes all
            blocks, whatever the policy or the caller wants.
        graph (FrameGraph or None): what runs the frames, where they are replayed. It survives a
            :meth:`reset`, with the features, for a video of the same size.
        image_size (tuple[int, int] or None): of the frames, as the network takes them.
        canvas_size (tuple[int, int] or None): height and width, with their padding.
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
        if slot is not None and self.num_streams > 1 and self.history is not None:
            self.counts[slot] = 0
            self.history.forget(slot)
            return
        self.lost = False
        if self.graph is None:
            self.features.reset()
            self.image_size = self.canvas_size = None
        self.counts = [0] * self.num_streams
        self.history = None

    def leave_graph(self):
        """Go on operator by operator, with all that is known."""
        self.graph = None
        if self.history is not None:
            self.history = replace(self.history, outputs=self.outputs)

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

    @property
    def outputs(self):
        """list: of every stream, as of the history; None for one without a frame."""
        if self.history is None:
            return [None] * self.num_streams
        outputs = self.history.outputs
        if isinstance(outputs, list):
            return outputs
        return [select_stream(outputs, n) if count else None for n, count in enumerate(self.counts)]

    def advance(self, present):
        """Count a frame of the streams that ``present`` (list[bool]) names."""
        self.counts = [count + now for count, now in zip(self.counts, present, strict=True)]


def _of_history(name):
    def read(self):
        return None if self.history is None else getattr(self.history, name)

    return property(read, doc=f"As ``history.{name}``; None before the first frame.")


for _field in fields(StreamHistory):
    if not hasattr(StreamBatch, _field.name):
        setattr(StreamBatch, _field.name, _of_history(_field.name))


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
