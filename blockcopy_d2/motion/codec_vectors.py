"""
Motion found by the encoder of a video, exported by its decoder.

To get it, open a video with ``stream.codec_context.options = {"flags2": "+export_mvs"}`` before the
first frame is decoded. FFmpeg exports vectors of H.264, MPEG-4, MPEG-2 and a few older codecs.

Shape shorthand in this module:

    N: streams
    M: pieces of a frame
    c: side of a cell, in pixels of the network's input
    GH, GW: rows and columns of cells
"""

import collections
import dataclasses
import re

import numpy as np
import torch
from detectron2.config import configurable

from .build import MOTION_REGISTRY, MotionEstimator, best_estimator
from .field import field_size
from .matching import keep_still

__all__ = ["CodecReader", "CodecVectors", "FrameVectors"]

# FFmpeg's numbers of picture types, as PyAV reports them.
_INTRA, _PREDICTED, _BIDIRECTIONAL = 1, 2, 3
# Types of units of H.264 that hold a part of a frame.
_SLICES = (1, 2, 5)
# Frames that a frame may refer to, at most.
_FURTHEST = 16
# Blocks of a codec have sides of multiples of this, in pixels of the video.
_PIECE = 4
# FFmpeg exports zeros for the bidirectional frames of MPEG-4, even where something moves.
_ONLY_PREDICTED = ("mpeg4",)
# A frame of which less is known is estimated from its pixels. In DAVIS, encoded by H.264, pictures
# moved by such vectors are off by 20 grey levels; by DISFlow, 6.
_LEAST_KNOWN = 0.5


class CodecReader:
    """
    Reads the vectors of a video's frames, in the order in which they are shown. A reader belongs to
    one video.

    A vector must lead to the frame shown before. A decoder says only whether a block came from the
    past or the future, not from which frame. The reader assumes the nearest past frame that had
    been decoded and that others may refer to. If that frame was shown k frames ago, vectors are
    divided by k. Vectors from the future are dropped. An encoder may still refer further back, so
    :class:`CodecVectors` drops vectors that the pixels do not confirm.
    """

    def __init__(self):
        self._packets = {}
        self._num_packets = 0
        self._kinds = (_PREDICTED, _BIDIRECTIONAL)
        self.reset()

    def reset(self):
        """Call it when the next frame does not follow the last one, such as after seeking."""
        self._shown = collections.deque(maxlen=_FURTHEST)

    def note(self, packet, context):
        """
        Notes the order of decoding, which differs from that of showing. Without it frames count as
        decoded in the order of showing; bidirectional frames are then never referred to.

        Args:
            packet (av.Packet): the next one that is decoded.
            context (av.CodecContext): decoder of its stream.
        """
        if context.name in _ONLY_PREDICTED:
            self._kinds = (_PREDICTED,)
        if packet.pts is None:
            return
        self._packets[packet.pts] = (self._num_packets, _is_reference(packet, context))
        self._num_packets += 1
        if len(self._packets) > 4 * _FURTHEST:  # Some packets never become a frame.
            del self._packets[next(iter(self._packets))]

    def read(self, frame):
        """
        Args:
            frame (av.VideoFrame): the next one that is shown.

        Returns:
            FrameVectors or None: None where the frame has none at all: an intra frame, the first
            one, a bidirectional one of MPEG-4, or a codec that exports none.
        """
        kind = int(frame.pict_type)
        number, is_reference = self._packets.pop(frame.pts, (None, None))
        if is_reference is None:
            is_reference = kind != _BIDIRECTIONAL
        distance = self._distance(number)
        self._shown.append((number, is_reference))
        if distance is None or kind not in self._kinds:
            return None
        try:
            exported = frame.side_data.get("MOTION_VECTORS")
        except ValueError:
            # PyAV lists no side data at all if it does not know one kind of it.
            exported = None
        if exported is None:
            return None
        vectors = exported.to_ndarray()
        past = vectors[vectors["source"] < 0]
        return FrameVectors.of_blocks(past, (frame.height, frame.width), distance)

    def _distance(self, number):
        """int or None: how many frames ago the frame was shown that this frame refers to."""
        for distance, (other, is_reference) in enumerate(reversed(self._shown), start=1):
            was_decoded = number is None or other is None or other < number
            if is_reference and was_decoded:
                return distance
        return None


def _is_reference(packet, context):
    """bool or None: whether other frames may refer to an H.264 frame; None for other codecs."""
    if context.name != "h264":
        return None
    data, extradata = bytes(packet), context.extradata
    # In MP4 and Matroska a unit starts with its length, elsewhere with a start code.
    if extradata and extradata[0] == 1:
        length = (extradata[4] & 3) + 1
        starts, start = [], length
        while start < len(data):
            starts.append(start)
            start += int.from_bytes(data[start - length : start], "big") + length
    else:
        starts = (match.end() for match in re.finditer(b"\0\0\1(?!$)", data, re.DOTALL))
    for start in starts:
        kind = data[start] & 31
        if kind in _SLICES:
            return data[start] >> 5 & 3 > 0
    return None


@dataclasses.dataclass(frozen=True)
class FrameVectors:
    """
    The places where the content of a frame was one frame ago, in pieces of 4 x 4 pixels.

    Attributes:
        size (tuple[int, int]): height and width of the frame, in pixels.
        places (ndarray): float64 (M, 2), x and y of the middle of each known piece.
        sources (ndarray): float64 (M, 2), the same points one frame ago.
    """

    size: tuple
    places: np.ndarray
    sources: np.ndarray

    @classmethod
    def of_blocks(cls, vectors, size, distance=1):
        """
        Args:
            vectors (ndarray): structured as PyAV's ``MotionVectors.to_ndarray()``.
            size (tuple[int, int]): height and width of the video.
            distance (int): frames that the vectors go back.

        Returns:
            FrameVectors:
        """
        places, sources = [np.zeros((0, 2))], [np.zeros((0, 2))]
        # Blocks of the same size together.
        shapes = np.unique(np.stack([vectors["h"], vectors["w"]], 1), axis=0)
        for height, width in shapes.astype(int):
            blocks = vectors[(vectors["h"] == height) & (vectors["w"] == width)]
            step = blocks["motion_scale"].astype(float) * distance
            # "dst" is the centre of a block.
            corners = blocks["dst_x"] - width // 2, blocks["dst_y"] - height // 2
            pieces = np.mgrid[0:height:_PIECE, 0:width:_PIECE].reshape(2, -1, 1) + _PIECE / 2
            x, y = corners[0] + pieces[1], corners[1] + pieces[0]
            inside = (y >= 0) & (y < size[0]) & (x >= 0) & (x < size[1])
            place = np.stack([x, y], -1)
            away = np.stack([blocks["motion_x"] / step, blocks["motion_y"] / step], -1)
            places.append(place[inside])
            sources.append((place + away)[inside])
        return cls(tuple(size), np.concatenate(places), np.concatenate(sources))

    def turned(self, transposed, mirrored, flipped):
        """
        Args:
            transposed (bool): swap rows and columns of the frame.
            mirrored, flipped (bool): mirror the result from left to right, from top to bottom.

        Returns:
            FrameVectors: vectors of the turned frame.
        """
        step = -1 if transposed else 1
        height, width = self.size[::step]
        moved = []
        for points in (self.places[:, ::step], self.sources[:, ::step]):
            x, y = points.T
            moved.append(np.stack([width - x if mirrored else x, height - y if flipped else y], 1))
        return FrameVectors((height, width), *moved)

    def field(self, image_size, cell_size, transform=None):
        """
        Averages the vectors over cells, by area.

        Args:
            image_size (tuple[int, int]): height and width of the network's input.
            cell_size (int): c.
            transform (Transform or None): Detectron2's transform from the frame to the input. None:
                the frame was resized.

        Returns:
            ndarray: float32 (2, GH, GW), dx and dy in pixels of the network's input; NaN in cells
            that are known by less than half.
        """
        rows, columns = field_size(image_size, cell_size)
        scale = np.array([image_size[1] / self.size[1], image_size[0] / self.size[0]])

        def put(points):
            # Detectron2's transforms write to their arguments.
            return points * scale if transform is None else transform.apply_coords(points.copy())

        middle = np.array([self.size[1] / 2, self.size[0] / 2])
        origin, right, down = put(middle + np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        piece_area = _PIECE**2 * abs(np.linalg.det(np.stack([right - origin, down - origin])))
        places = put(self.places)
        inside = ((places >= 0) & (places < np.array(image_size[::-1]))).all(1)
        places, vectors = places[inside], (put(self.sources)[inside] - places[inside])
        x, y = (places // cell_size).astype(int).T
        weights = np.stack([*vectors.T, np.ones(len(places))])
        sums = np.stack([np.bincount(y * columns + x, w, rows * columns) for w in weights])
        # Cells at the border are cut.
        heights = np.minimum(np.arange(1, rows + 1) * cell_size, image_size[0])
        widths = np.minimum(np.arange(1, columns + 1) * cell_size, image_size[1])
        area = np.diff(heights, prepend=0)[:, None] * np.diff(widths, prepend=0)
        pieces = area.flatten() / piece_area
        known = sums[2] >= np.maximum(0.5 * pieces, 0.5)
        field = np.where(known, sums[:2] / np.maximum(sums[2], 1), np.nan)
        return field.reshape(2, rows, columns).astype(np.float32)


@MOTION_REGISTRY.register()
class CodecVectors(MotionEstimator):
    """
    The vectors of :class:`FrameVectors`, where they explain the pixels better than staying. Frames
    without vectors for half of their cells go to another estimator. In other frames, cells without
    a vector stay.
    """

    reads_vectors = True

    @configurable
    def __init__(self, *, cell_size=8, fallback):
        """
        Args:
            cell_size (int): see MotionEstimator.
            fallback (MotionEstimator): another estimator, with cells of the same size.
        """
        super().__init__(cell_size=cell_size)
        if fallback.cell_size != cell_size:
            raise ValueError(
                f"the fallback has cells of {fallback.cell_size} pixels: expected {cell_size}"
            )
        self.fallback = fallback

    @classmethod
    def from_config(cls, cfg):
        return {
            "cell_size": cfg.MODEL.BLOCKCOPY.MOTION.CELL_SIZE,
            "fallback": MOTION_REGISTRY.get(best_estimator(cfg.MODEL.DEVICE))(cfg),
        }

    def workspace(self, features):
        return self.fallback.workspace(features)

    def features(self, images, image_sizes=None, *, codec=None, out=None):
        features = super().features(images, image_sizes, out=out)
        if codec is None or all(vectors is None for vectors in codec):
            return features
        shape = (2, *field_size(features.size, self.cell_size))
        if len(codec) != len(images):
            raise ValueError(f"vectors for {len(codec)} streams: expected {len(images)}")
        on_canvas = np.full((len(codec), *shape), np.nan, np.float32)
        without = [True] * len(codec)
        for slot, vectors in enumerate(codec):
            if vectors is None:
                continue
            vectors = _as_array(vectors)
            fits = len(vectors.shape) == 3 and vectors.shape[0] == 2
            if not fits or any(has > room for has, room in zip(vectors.shape, shape)):
                raise ValueError(
                    f"vectors of shape {tuple(vectors.shape)} do not fit a canvas of {shape}: were "
                    f"they read for the size of the network's input and cells of {self.cell_size}?"
                )
            placed = on_canvas[slot, :, : vectors.shape[1], : vectors.shape[2]]
            placed[:] = vectors
            without[slot] = np.isfinite(placed).all(0).mean() < _LEAST_KNOWN
        if all(without):
            return features
        features.codec = torch.from_numpy(on_canvas).to(images.device)
        features.without_codec = torch.tensor(without)
        return features

    def estimate(self, current, previous, *, out=None, workspace=None):
        out = self._output(current, previous, out)
        if current.codec is None:
            return self.fallback.estimate(current, previous, out=out, workspace=workspace)
        cell = self.cell_size // 2
        field = current.codec.nan_to_num(0, 0, 0) / 2
        # An encoder takes vectors that save bits, even if they contradict their neighbours.
        keep_still(field, current.levels[0], previous.levels[0], cell, radius=0)
        if current.without_codec.any():
            self.fallback.estimate(current, previous, out=out, workspace=workspace)
            missing = current.without_codec.view(-1, 1, 1, 1).to(out.device)
            return out.copy_(torch.where(missing, out, 2 * field))
        return torch.mul(field, 2, out=out)


def _as_array(vectors):
    """ndarray: of real numbers, on the CPU."""
    if isinstance(vectors, torch.Tensor):
        vectors = vectors.detach().float().cpu()
    array = np.asarray(vectors)
    if array.dtype.kind not in "fiu":
        raise ValueError(
            f"vectors are {type(vectors).__name__} of {array.dtype}; expected an array of real"
            " numbers (2, GH, GW), as FrameVectors.field() gives it"
        )
    return array
