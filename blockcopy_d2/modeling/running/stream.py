"""
The state of videos between their frames.

Shape shorthand: N streams of a batch.
"""

from dataclasses import fields, replace

from blockcopy_d2.config_key import whole
from blockcopy_d2.sparse import StreamState

from .history import StreamHistory, select_stream, tensors_of


class StreamBatch:
    """
    N videos in progress that run together, one frame of each per tick, all of one size. Every
    stream has a slot with its own features and history; after a video ends, :meth:`reset` frees its
    slot for the next one. A batch belongs to the videos, not to the model: one model serves any
    number of batches, in any order.

    Attributes of the history can be read here, too: ``streams.age``.

    Attributes:
        num_streams (int): N.
        counts (list[int]): number of frames so far, for every stream.
        history (StreamHistory or None): None before the first frame.
        policies (list[Policy] or None): one for every stream; None: they use that of the model.
        features (StreamState): feature caches of the block-sparse modules.
        weights_version (int or None): weights version of the model that ran the last frame, see
            :class:`BlockCopyVideoModel`.
        lost (bool): whether the features of a video in progress are gone. Its next frame then
            executes all blocks, regardless of the policy and the caller.
        graph (FrameGraph or None): runs the frames if they are replayed. It survives a
            :meth:`reset`, with the features, for a video of the same size.
        image_size (tuple[int, int] or None): size of the frames, as the network takes them.
        canvas_size (tuple[int, int] or None): height and width, with their padding.
        regions (StreamRegions or None): blocks that always or never run; None before the first
            frame of a size.
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
            self.image_size = self.canvas_size = self.regions = None
        self.counts = [0] * self.num_streams
        self.history = None

    def take_over(self, slot, other, other_slot):
        """
        Go on with a video of other streams of the same model, whose frames are graphs as well. All
        that is known of it is copied; where that cannot be, its next frame executes all blocks.

        Args:
            slot (int): for the video; these streams have had a frame.
            other (StreamBatch):
            other_slot (int): other slot of the video.
        """
        self.reset(slot)
        alike = all(
            getattr(self, name) == getattr(other, name)
            for name in ("weights_version", "image_size", "canvas_size")
        )
        memories = [x.graph and x.graph.memory for x in (self, other)]
        if not alike or self.lost or other.lost or None in memories:
            return
        own, others = (list(tensors_of(memory.history)) for memory in memories)
        for target, source in zip(own, others, strict=True):
            target[slot].copy_(source[other_slot])
        self.features.copy_stream(slot, other.features, other_slot)
        self.counts[slot] = other.counts[other_slot]

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
        """list: the output of every stream, as in the history; None for one without a frame."""
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
