"""
What is remembered of a video between its frames.

Shape shorthand in this module:

    GH, GW: rows and columns of the block grid
    h, w: policy resolution, 32 GH x 32 GW
    K: classes of the task network's output
"""

from collections import OrderedDict

import torch

from blockcopy_d2.sparse import StreamState

from .roi_features import PlanarFeatures


class VideoStream:
    """
    One video in progress. It belongs to the video, not to the model: any number of them may be
    served by one model, in any order.

    Attributes:
        features (StreamState): feature caches of the block-sparse modules.
        roi_features (PlanarFeatures): the backbone's features as RoI heads read them.
        frames (int): number of frames so far.
        canvas_size (tuple[int, int] or None): their padded size (H, W).
        frame_state (Tensor): float (1, 3, h, w), the pixels of each block when it was last
            executed, H_t of eq. 2.
        painted (Tensor): float (1, K, h, w) in [0, 1], the last output as the policy sees it.
        output: the last output as information gain compares it.
        active (Tensor): bool (1, GH, GW), the blocks executed last.
        broken (Tensor): bool scalar, true if the last frame left features that are not finite;
            stays on the device.
    """

    def __init__(self):
        self.features = StreamState()
        self.roi_features = PlanarFeatures()
        self.reset()

    def reset(self):
        """Forget the video; the next frame executes all blocks."""
        self.features.reset()
        self.roi_features.reset()
        self.frames = 0
        self.canvas_size = None
        self.frame_state = None
        self.painted = None
        self.output = None
        self.active = None
        self.broken = torch.tensor(False)

    @property
    def started(self):
        return self.frames > 0


class StreamPool:
    """The streams a model keeps, by video id. The least recently used one goes first."""

    def __init__(self, max_streams):
        """
        Args:
            max_streams (int): at least 1.
        """
        self.max_streams = max_streams
        self._streams = OrderedDict()

    def __len__(self):
        return len(self._streams)

    def get(self, video_id, frame_index):
        """
        Args:
            video_id (str):
            frame_index (int): 0 starts the video anew.

        Returns:
            VideoStream: of this video, a fresh one if it is new.
        """
        stream = self._streams.get(video_id)
        if stream is None:
            stream = self._streams[video_id] = VideoStream()
        elif frame_index == 0:
            stream.reset()
        self._streams.move_to_end(video_id)
        while len(self._streams) > self.max_streams:
            self._streams.popitem(last=False)
        return stream

    def clear(self):
        self._streams.clear()
