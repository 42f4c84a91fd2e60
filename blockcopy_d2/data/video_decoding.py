"""Decodes a video file, a camera or an address by FFmpeg's libraries, as it is meant to look."""

import logging
import time
from fractions import Fraction

import numpy as np

from blockcopy_d2.motion import CodecReader

from .addresses import is_address, name_of, redact
from .clips import FrameReadError
from .video_format import VideoFormat

# Limits for a silent server: until the first packet, and between packets.
_OPEN_SECONDS, _READ_SECONDS = 15.0, 30.0
# Headers without a rate give the file's clock instead. Above this it cannot be a rate.
_HIGHEST_RATE = 1000
# FFmpeg's flag of formats without times, for which it counts 25 frames a second, and the clock that
# takes their place where frames come live.
_NO_TIMESTAMPS, _ARRIVAL_BASE = 0x80, Fraction(1, 1000)
# FFmpeg's AVCOL_SPC of YUV whose file does not name the matrix: RGB, unspecified, reserved.
_NO_MATRIX = (0, 2, 3)
# BT.709, and the two of BT.601.
_COMMON_MATRICES = (1, 5, 6)


class DecodedVideo:
    """
    A video that FFmpeg can read. Each call of :meth:`read` opens it anew.

    Attributes:
        shown (str): the source, without secrets.
        name (str):
        format (VideoFormat or None): None before :meth:`probe`, as the next two.
        num_frames (int or None): None where the source does not say.
        live (bool): whether it goes on without being read.
        stream_index (int): index of the video stream within the file.
        peculiarity (str or None): a property of the video that simpler decoders get wrong.
    """

    def __init__(self, source, default_rate):
        """
        Args:
            source (str):
            default_rate (Fraction): used if the source has none.
        """
        self._source, self._default_rate = source, default_rate
        self.shown, self.name = redact(source), name_of(source)
        self.format = self.num_frames = self.live = self.stream_index = self.peculiarity = None
        self._untimed = False

    @property
    def path(self):
        """str or None: path of the file; None for other sources."""
        return None if is_address(self._source) or self._is_camera else self._source

    def probe(self):
        """
        Read the header and the first frame.

        Returns:
            ndarray or None: the first frame; None where none can be decoded.
        """
        with self._open() as container:
            stream = _video_stream(container, self.shown)
            rates = map(_fraction, (stream.average_rate, stream.guessed_rate))
            rate = next((r for r in rates if r and 0 < r <= _HIGHEST_RATE), self._default_rate)
            context, aspect = stream.codec_context, _fraction(stream.sample_aspect_ratio)
            self.num_frames, self.stream_index = _announced_frames(container, stream), stream.index
            endless = container.duration is None and (container.size or 0) <= 0
            self.live = self._is_camera or (is_address(self._source) and endless)
            self._untimed = bool(self.live and container.format.flags & _NO_TIMESTAMPS)
        # Only a decoded frame shows that the video can be decoded, and which way is up.
        frame, image, _ = next(self._decode(), (None, None, None))
        if frame is not None and aspect and _orientation(frame)[0]:
            aspect = 1 / aspect
        self.peculiarity = None if frame is None else _peculiarity(frame)
        self.format = VideoFormat(
            fps=Fraction(rate),
            time_base=None if frame is None else self._time_base(frame),
            sample_aspect_ratio=aspect,
            colorspace=int(context.colorspace),
            color_primaries=int(context.color_primaries),
            color_trc=int(context.color_trc),
            color_range=int(context.color_range),
        )
        return image

    def read(self, *, vectors=False):
        """See :meth:`VideoFrames.read`."""
        first = seconds = None
        for frame, image, found in self._decode(vectors):
            base, ticks = self._time_base(frame), frame.pts
            if self._untimed:
                ticks = round(time.perf_counter() / base)
            if ticks is None or base is None:
                shown = None
            else:
                first = ticks if first is None else first
                shown = float((ticks - first) * base)
            if seconds is None:
                seconds = 0.0
            elif shown is None:
                seconds += float(1 / self.format.fps)
            else:
                # Broken files repeat a time, or go back.
                seconds = max(shown, seconds + float(base))
            yield image, seconds, found

    def _time_base(self, frame):
        return _ARRIVAL_BASE if self._untimed else _fraction(frame.time_base)

    @property
    def _is_camera(self):
        return self._source.startswith("/dev/video")

    def _open(self):
        # PyAV is needed here alone; training a detector works without it.
        import av

        address = is_address(self._source)
        plain = address or self._is_camera
        # Tags need not be text. From version 19 on PyAV reads any, and has no such option.
        tags = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
        reason = None
        try:
            # The prefix keeps a colon of a file name from naming a protocol.
            return av.open(
                self._source if plain else f"file:{self._source}",
                format="v4l2" if self._is_camera else None,
                timeout=(_OPEN_SECONDS, _READ_SECONDS) if address else None,
                options=_options(self._source),
                **tags,
            )
        except av.error.ExitError:
            reason = f"does not answer within {_OPEN_SECONDS:g} seconds."
        except av.FFmpegError as error:
            reason = f"cannot be read as a video: {error.strerror}"
        # Raised out here, so that FFmpeg's own error, which contains the address, is not chained.
        raise ValueError(f"{self.shown} {reason}")

    def _decode(self, vectors=False):
        """Yields frames of PyAV with their images and vectors; warns about broken parts."""
        import av
        from av.video.reformatter import VideoReformatter

        index, broken_at, reason = 0, None, None
        codec = CodecReader() if vectors else None
        reformatter = VideoReformatter()
        try:
            with self._open() as container:
                stream = _video_stream(container, self.shown)
                # Threads that decode one frame each would delay the video by as many frames.
                stream.thread_type = "SLICE" if self.live else "AUTO"
                if vectors:
                    stream.codec_context.options = {"flags2": "+export_mvs"}
                for packet in container.demux(stream):
                    if codec is not None:
                        codec.note(packet, stream.codec_context)
                    try:
                        frames, broken = packet.decode(), False
                    except av.InvalidDataError:
                        frames, broken = [], True
                    broken = broken or any(f.is_corrupt for f in frames)
                    if broken_at is None and broken:
                        broken_at = index
                    if codec is not None and broken:
                        codec.reset()
                    for frame in frames:
                        image, found = _upright(frame, reformatter, codec)
                        yield frame, image, found
                        index += 1
        except av.error.ExitError:
            reason = f"nothing came for {_READ_SECONDS:g} seconds"
        except av.FFmpegError as error:
            reason = error.strerror
        if reason is not None:
            raise FrameReadError(self.shown, self.name, index, reason)
        self.warn_if_incomplete(index, broken_at)

    def warn_if_incomplete(self, decoded, broken_at=None):
        """
        Args:
            decoded (int): number of frames that came.
            broken_at (int or None): the first that is broken.
        """
        logger = logging.getLogger(__name__)
        if broken_at is not None:
            logger.warning("%s is broken from frame %d on, in parts.", self.shown, broken_at)
        if self.num_frames and decoded < self.num_frames:
            logger.warning(
                "%s ends after frame %d; its header announces %d frames. Is it truncated?",
                self.shown,
                decoded - 1,
                self.num_frames,
            )


def _options(source):
    """Returns FFmpeg's options for a source."""
    if source.lower().startswith("rtsp://"):
        # With TCP a lost camera is noticed at once, and no packet is lost.
        return {"rtsp_flags": "prefer_tcp"}
    return {}


def _video_stream(container, shown):
    """Returns the first stream that is not a cover picture."""
    streams = container.streams.video
    attached = [bool(stream.disposition & stream.disposition.attached_pic) for stream in streams]
    for stream, is_picture in zip(streams, attached, strict=True):
        if not is_picture:
            return stream
    raise ValueError(f"{shown} has no video stream{', but a cover picture' if attached else ''}.")


def _announced_frames(container, stream):
    """
    Returns the frames announced by the header, less those that an edit list cuts, and those that
    AVI leaves empty to repeat the last one; None if the header does not say.
    """
    if not stream.frames:
        return None
    if container.format.name == "avi":
        entries = list(stream.index_entries)
        is_whole = entries and entries[-1].timestamp == stream.frames - 1
        return len(entries) if is_whole else stream.frames
    if "mp4" not in container.format.name:
        return stream.frames
    shown = sum(not entry.is_discard for entry in stream.index_entries)
    return min(stream.frames, shown) or stream.frames


def _upright(frame, reformatter, codec):
    """
    Returns:
        tuple[ndarray, FrameVectors or None]: BGR uint8 (H, W, 3), and the vectors that ``codec``, a
        CodecReader or None, reads; turned and mirrored as the display matrix says.
    """
    matrix = None
    if not frame.format.is_rgb and int(frame.colorspace) in _NO_MATRIX:
        # Like players: HD is BT.709, smaller videos are BT.601.
        matrix = "ITU709" if frame.width >= 1280 or frame.height >= 720 else "ITU601"
    image = reformatter.reformat(frame, format="bgr24", src_colorspace=matrix).to_ndarray()
    transposed, mirrored, flipped = _orientation(frame)
    if transposed:
        image = image.transpose(1, 0, 2)
    image = image[:: -1 if flipped else 1, :: -1 if mirrored else 1]
    vectors = None if codec is None else codec.read(frame)
    if vectors is not None:
        vectors = vectors.turned(transposed, mirrored, flipped)
    return np.ascontiguousarray(image), vectors


def _is_hd(frame):
    return frame.width >= 1280 or frame.height >= 720


def _peculiarity(frame):
    """str or None: see :class:`DecodedVideo`; the rest of a sentence about its video."""
    matrix, bits = int(frame.colorspace), max(c.bits for c in frame.format.components)
    if sum(_orientation(frame)) % 2:
        return "it is mirrored"
    if bits > 8:
        return f"its colours have {bits} bits"
    if frame.format.is_rgb or matrix in _COMMON_MATRICES:
        return None
    if matrix not in _NO_MATRIX:
        return f"the matrix of its colours is number {matrix}"
    return "it is HD and does not name the matrix of its colours" if _is_hd(frame) else None


def _fraction(value):
    """Fraction or None: a ratio of PyAV, which has a type of its own from version 19 on."""
    return Fraction(value.numerator, value.denominator) if value else None


def _orientation(frame):
    """
    Reads the display matrix of a PyAV frame, to the nearest quarter turn.

    Returns:
        tuple[bool, bool, bool]: whether to swap rows and columns, and whether to mirror the result
        from left to right, and from top to bottom.
    """
    quarters = round(frame.rotation / 90) % 4
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV lists no side data at all if it does not know one kind of it. The rotation is still
        # known.
        return quarters % 2 == 1, quarters in (2, 3), quarters in (1, 2)
    if data is None:
        return False, False, False
    # x' = a x + c y, y' = b x + d y; the other numbers move and project.
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, a < 0, d < 0
    return True, c < 0, b < 0
