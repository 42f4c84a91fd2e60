"""
The streams that a model keeps by video id.

Shape shorthand: N streams of a batch.
"""

import logging
from collections import OrderedDict
from collections.abc import Hashable

from blockcopy_d2.config_key import whole

from .stream import StreamBatch, VideoStream

__all__ = ["StreamPool"]

# Any number that rises will do, such as a time.
_INDEX = whole(0, least=0, most=2**63 - 1)
# Ids of dropped videos that are remembered, to notice when one of them goes on.
_MAX_DROPPED = 10_000


class StreamPool:
    """
    The streams a model keeps, by video id. The least recently used one goes first. The first time
    that a video goes on whose stream has gone, a warning says so: with more videos in turn than
    there is room for, every frame executes all blocks.

    A video is a stream of its own until it has a frame together with others: from then on it has a
    slot in a batch of streams, in which it misses a frame where it has none. Batches have as many
    slots as a power of two, so that few sizes are ever captured. One that has to grow is a new one,
    which takes its videos over.
    """

    def __init__(self, max_streams):
        """
        Args:
            max_streams (int): at least 1.
        """
        self.max_streams = max_streams
        self._streams = OrderedDict()
        # Videos that have a slot in a batch.
        self._slots = {}
        self._dropped = OrderedDict()
        self._has_warned = False

    def __len__(self):
        return len(self._streams)

    def get(self, video_id, frame_index):
        """
        Args:
            video_id (str): name of the video, or anything else that is hashable.
            frame_index (int or None): 0 starts the video anew.

        Returns:
            VideoStream: that of this video, a fresh one if it is new.

        Raises:
            ValueError: an argument has another type.
        """
        frame_index = self._check(video_id, frame_index)
        stream = self._streams.get(video_id)
        if stream is not None and stream.num_streams > 1:
            self._slots.pop(video_id)
            stream = self._streams[video_id] = VideoStream()
        elif stream is None:
            self._note(video_id, frame_index)
            stream = self._streams[video_id] = self._unused()
        elif frame_index == 0:
            stream.reset()
        self._streams.move_to_end(video_id)
        return stream

    def is_in_batch(self, video_id):
        """
        Returns:
            bool: whether the video has a slot in a batch of streams.

        Raises:
            ValueError: its name cannot be that of a video.
        """
        self._check(video_id, None)
        return video_id in self._slots

    def get_batch(self, frames, image_size):
        """
        Args:
            frames (list[tuple]): video id and frame index, see :meth:`get`, of different videos;
                at most ``max_streams``.
            image_size (tuple[int, int]): height and width of the frames; those of another size are
                in other batches.

        Returns:
            tuple[StreamBatch, list[int], list[tuple]]: one with a slot for each of these videos;
            theirs; and see :meth:`StreamBatch.take_over` the slot, streams and slot there of
            every video that was elsewhere.

        Raises:
            ValueError: an id or an index has another type.
        """
        frames = [(video_id, self._check(video_id, index)) for video_id, index in frames]
        videos = [video_id for video_id, _ in frames]
        before = {v: (stream, self._slots.get(v, 0)) for v, stream in self._streams.items()}
        batch = self._room_for(videos, image_size)
        for video_id, frame_index in frames:
            if self._streams.get(video_id) is not batch:
                if video_id not in self._streams:
                    self._note(video_id, frame_index)
                self._join(video_id, batch)
            elif frame_index == 0:
                batch.reset(self._slots[video_id])
            self._streams.move_to_end(video_id)
        anew = {video_id for video_id, frame_index in frames if frame_index == 0}
        moved = [
            (self._slots[v], *before[v])
            for v in self._members(batch)
            if v not in anew and v in before and before[v][0] is not batch
        ]
        return batch, [self._slots[v] for v in videos], moved

    def _room_for(self, videos, image_size):
        """StreamBatch: with a slot for each of the videos, used or free."""
        batches = [self._streams[v] for v in videos if v in self._slots]
        batches = [x for x in batches if x.image_size in (None, image_size)]
        batch = max(batches, key=lambda x: len(self._members(x)), default=None)
        members = self._members(batch)
        staying = [v for v in members if v not in videos]
        # The least recently used streams are dropped, here and elsewhere.
        kept = staying[max(len(staying) + len(videos) - self.max_streams, 0) :]
        others = [v for v in self._streams if v not in members and v not in videos]
        excess = len(others) + len(kept) + len(videos) - self.max_streams
        for video_id in [*staying[: len(staying) - len(kept)], *others[: max(excess, 0)]]:
            self._drop(video_id)
        number = len(kept) + len(videos)
        if batch is None or batch.num_streams < number:
            slots = 1 << (number - 1).bit_length()
            batch = StreamBatch(max(min(slots, self.max_streams), 2))
            for video_id in kept:
                self._join(video_id, batch)
        return batch

    def _members(self, batch):
        """list: the videos of a batch, the least recently used one first."""
        return [v for v, stream in self._streams.items() if stream is batch]

    def _join(self, video_id, batch):
        taken = {self._slots[v] for v in self._members(batch)}
        slot = next(n for n in range(batch.num_streams) if n not in taken)
        self._streams[video_id], self._slots[video_id] = batch, slot
        batch.reset(slot)

    def _check(self, video_id, frame_index):
        if video_id is None or not isinstance(video_id, Hashable):
            raise ValueError(
                f"The video_id of a frame is {video_id!r}; expected a name, such as 'camera 1', or"
                " no video_id at all for a still image."
            )
        return None if frame_index is None else _INDEX.check("frame_index", frame_index)

    def _unused(self):
        """VideoStream: with the memory of the one that goes, if one has to."""
        if len(self._streams) < self.max_streams:
            return VideoStream()
        stream = self._drop(next(iter(self._streams)))
        if stream.num_streams > 1:
            return VideoStream()
        stream.reset()
        return stream

    def _drop(self, video_id):
        """StreamBatch: that the video was in."""
        self._slots.pop(video_id, None)
        self._dropped[video_id] = None
        if len(self._dropped) > _MAX_DROPPED:
            self._dropped.popitem(last=False)
        return self._streams.pop(video_id)

    def _note(self, video_id, frame_index):
        """Notices a new video, and the return of one that was dropped."""
        if video_id not in self._dropped:
            return
        if frame_index != 0 and not self._has_warned:
            # All streams here, and all dropped after it, had a frame since its last one.
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
        self._slots.clear()
        self._dropped.clear()
