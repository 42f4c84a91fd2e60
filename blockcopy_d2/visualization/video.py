"""Writes video files that play everywhere: H.264, yuv420p, index in front."""

import contextlib
import math
import numbers
import os
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from blockcopy_d2.atomic import atomic_write
from blockcopy_d2.data.addresses import is_address, redact
from blockcopy_d2.data.pictures import as_frame

__all__ = ["VideoWriteError", "VideoWriter", "check_video_path"]

# Single files that hold H.264. Other suffixes hold other codecs (.webm, .gif), or a playlist beside
# many files (.m3u8).
SUFFIXES = (".mp4", ".mkv", ".mov", ".m4v", ".avi", ".flv", ".ts")
_CODEC = "libx264"
# Formats with their index in front, so that they play while they load.
_STREAMABLE = (".mp4", ".mov", ".m4v")
# Containers with a fixed time base. For all others the writer chooses one between these limits.
_TIME_BASES = {".mkv": Fraction(1, 1000), ".flv": Fraction(1, 1000), ".ts": Fraction(1, 90_000)}
_COARSEST, _FINEST = Fraction(1, 10_000), Fraction(1, 1_000_000)
# AVI numbers its frames in the order of storage, and has no other time.
_NUMBERED = ".avi"

# Codes of ISO/IEC 23091-2, as PyAV and FFmpeg take them.
_UNSPECIFIED = 2
_HD, _SD = 1, 6  # BT.709 and BT.601: the same number for matrix, primaries and transfer.
# Code of a matrix -> swscale's matrix to convert with, if PyAV has it: BT2020 is new in PyAV 18.
_NAMES = {1: "ITU709", 4: "FCC", 5: "ITU601", 6: "ITU601", 7: "SMPTE240M", 9: "BT2020"}
_MATRICES = {
    code: Colorspace[name] for code, name in _NAMES.items() if name in Colorspace.__members__
}


class VideoWriteError(OSError):
    """A video that cannot be continued, for instance because the disk is full."""


def check_video_path(path):
    """
    Refuse paths that :class:`VideoWriter` cannot write to. Nothing is opened or made.

    Args:
        path (str or PathLike): path of a video to write.

    Raises:
        OSError: there is no such folder, or ``path`` is something other than a file.
        ValueError: the suffix names no container for H.264, or the encoder is missing.
    """
    path = os.fsdecode(path)
    named = f"Cannot write the video {redact(path)}"
    if is_address(path):
        raise ValueError(f"{named}: it is an address; expected the name of a file.")
    if os.path.isdir(path):
        raise IsADirectoryError(f"{named}: it is a folder; expected the name of a file.")
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(f"{named}: it is a device or pipe; expected the name of a file.")
    if _suffix(path) not in SUFFIXES:
        raise ValueError(
            f"{named}: its suffix names no video format that holds H.264."
            f" Use {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}."
        )
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{named}: there is no folder {folder}.")
    if _CODEC not in av.codecs_available:
        raise ValueError(f"{named}: PyAV {av.__version__} has no encoder {_CODEC}. Install av.")


class VideoWriter:
    """
    Streams frames into a video file, holding none of them. A context manager: leaving it, also by
    an exception or an interrupt, finishes the file, so that it plays up to there.

    The file gets its name once it is finished. Until then an earlier file of that name stays, for
    good if the process is killed or the disk is full. An exception in the context, other than an
    interrupt, also keeps it: an unfinished video replaces none.

    The first frame sets the size. H.264 with yuv420p needs even sizes: an odd one is extended by
    repeating the last row or column. Colours are converted by the matrix that the file is tagged
    with: the source's if ``format`` has it, else BT.709 from 720 rows on and BT.601 below.
    """

    def __init__(self, path, fps, *, format=None):
        """
        Args:
            path (str or PathLike): path of the file; its suffix names the container (.mp4, .mkv,
                .mov).
            fps (float): frames per second, for frames without a time of their own.
            format (VideoFormat or None): format of the video that the frames come from: its time
                base, sample aspect ratio and colours are kept.

        Raises:
            OSError: the file cannot be written there.
            ValueError: the suffix names no container for H.264, or ``fps`` is out of range.
        """
        is_number = isinstance(fps, numbers.Real) and not isinstance(fps, bool)
        if not is_number or not 1e-4 <= fps <= 1e6:
            raise ValueError(
                "A video needs a positive number of frames per second, 0.0001 to 1000000, not"
                f" {fps!r}."
            )
        check_video_path(path)
        self.path = os.fsdecode(path)
        self.frames = 0
        self._period = _period(float(fps))
        self._format = format
        self._time_base = self._choose_time_base()
        self._clock = _Clock(self._period)
        self._stream = self._container = None
        self._replaces = os.path.exists(self.path)
        self._files = contextlib.ExitStack()
        try:
            self._temporary = self._files.enter_context(atomic_write(self.path))
        except OSError as error:
            raise type(error)(f"Cannot write the video {self.path}: {error}") from error
        with self._named_errors(), self._files:
            flags = {"movflags": "+faststart"} if _suffix(self.path) in _STREAMABLE else {}
            self._container = av.open(self._temporary, "w", options=flags)
            self._files = self._files.pop_all()

    def write(self, frame, seconds=None):
        """
        Args:
            frame (ndarray or PIL.Image.Image): uint8, (H, W, 3), BGR; as large as the first one.
            seconds (float or Fraction or None): when it is shown, since the first frame. A time
                that does not advance is moved to just after the frame before. None: 1 / ``fps``
                after that frame.

        Raises:
            VideoWriteError: the disk is full, or the frame cannot be encoded.
            TypeError: the frame is not a picture.
            ValueError: the frame has another size or type of numbers, the time is not finite, or
                the video is closed.
        """
        if self._container is None:
            raise ValueError(f"{self.path} is closed: no frame can be added.")
        frame = as_frame(frame)
        height, width = frame.shape[:2]
        if self._stream is None:
            self._size = height, width
        elif (height, width) != self._size:
            raise ValueError(
                f"{self.path}: frame {self.frames} is {width}x{height}, but the video is"
                f" {self._size[1]}x{self._size[0]}. Start another file for another size."
            )
        position = self._clock.position(seconds)
        frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(frame, format="bgr24")
        with self._named_errors():
            if self._stream is None:
                self._stream = self._open_stream(picture)
            self._container.mux(self._stream.encode(self._encodable(picture, position)))
        self.frames += 1

    @property
    def size(self):
        """int: bytes written so far of an open video."""
        return os.path.getsize(self._temporary)

    def _open_stream(self, picture):
        stream = self._container.add_stream(_CODEC, rate=1 / self._period)
        stream.height, stream.width = picture.height, picture.width
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "20", "preset": "veryfast"}
        if _suffix(self.path) == _NUMBERED:
            stream.options = {**stream.options, "bf": "0"}  # Stored in the order of their times.
        stream.time_base = stream.codec_context.time_base = self._time_base
        self._colors = _Colors.of(self._format, *self._size)
        self._colors.tag(stream.codec_context)
        if self._format is not None and self._format.sample_aspect_ratio:
            stream.codec_context.sample_aspect_ratio = self._format.sample_aspect_ratio
        self._last = -1
        return stream

    def _encodable(self, picture, position):
        picture = self._colors.convert(picture)
        # Times closer than the time base must still differ.
        self._last = max(self._last + 1, round(position / self._time_base))
        picture.pts, picture.time_base = self._last, self._time_base
        picture.duration = max(1, round(self._period / self._time_base))
        return picture

    def _choose_time_base(self):
        """Fraction: the source's time base, or a fine enough part of the distance of frames."""
        suffix = _suffix(self.path)
        if suffix == _NUMBERED:
            return self._period
        if suffix in _TIME_BASES:
            return _TIME_BASES[suffix]
        base = self._format.time_base if self._format is not None else None
        base = Fraction(1, (base or self._period).denominator)
        while base > _COARSEST:
            base /= 2
        return max(base, _FINEST)

    def close(self):
        """
        Finish the file. A video without a single frame leaves none.

        Raises:
            VideoWriteError: the file cannot be finished, for instance on a full disk.
        """
        self._close(keep=True)

    def _close(self, keep):
        if self._container is None:
            return
        container, self._container = self._container, None
        with self._named_errors(), self._files:
            if keep and self.frames:
                container.mux(self._stream.encode())
                container.close()
                return
            os.remove(self._temporary)  # Nothing is renamed then.
            with contextlib.suppress(av.FFmpegError):  # Errors of a removed file do not matter.
                container.close()

    @contextlib.contextmanager
    def _named_errors(self):
        try:
            yield
        except (av.FFmpegError, OSError) as error:
            reason = error.strerror or error
            raise VideoWriteError(f"Cannot write the video {self.path}: {reason}") from error

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        failed = kind is not None and not issubclass(kind, KeyboardInterrupt)
        self._close(keep=not (failed and self._replaces))


class _Clock:
    """Gives frames their times, each after the frame before."""

    def __init__(self, period):
        self._period = period
        self._offset = 0
        self._source = self._last = None

    def position(self, seconds):
        """
        Args:
            seconds (float or Fraction or None): by the source's clock.

        Returns:
            Fraction: not below the one before.
        """
        if seconds is not None and not math.isfinite(seconds):
            raise ValueError(f"A frame is shown at a number of seconds, not at {seconds}.")
        following = 0 if self._last is None else self._last + self._period
        if seconds is None:
            seconds = following - self._offset
        seconds = Fraction(seconds if isinstance(seconds, Fraction) else float(seconds))
        if self._last is None or seconds < self._source:
            # A clock that was set back continues from here.
            self._offset = following - seconds
        self._source, self._last = seconds, seconds + self._offset
        return self._last


class _Colors:
    """The conversion of colours, and its name in the file; the two must agree."""

    def __init__(self, matrix, primaries, transfer, color_range):
        self.matrix, self.primaries, self.transfer = matrix, primaries, transfer
        self.color_range = color_range

    @classmethod
    def of(cls, format, height, width):
        """
        Args:
            format (VideoFormat or None): format of the source.
            height, width (int): height and width of a frame, in pixels.
        """
        usual = _HD if height >= 720 or width >= 1280 else _SD
        matrix = primaries = transfer = color_range = None
        if format is not None:
            matrix = format.colorspace
            primaries, transfer = format.color_primaries, format.color_trc
            color_range = format.color_range
        return cls(
            matrix if matrix in _MATRICES else usual,
            usual if primaries in (None, 0, _UNSPECIFIED) else primaries,
            usual if transfer in (None, 0, _UNSPECIFIED) else transfer,
            ColorRange.JPEG if color_range == ColorRange.JPEG else ColorRange.MPEG,
        )

    def tag(self, codec_context):
        codec_context.colorspace = self.matrix
        codec_context.color_primaries = self.primaries
        codec_context.color_trc = self.transfer
        codec_context.color_range = self.color_range

    def convert(self, picture):
        """VideoFrame: yuv420p, of one in BGR."""
        converted = picture.reformat(
            format="yuv420p",
            dst_colorspace=_MATRICES[self.matrix],
            dst_color_range=self.color_range,
        )
        converted.colorspace, converted.color_range = self.matrix, self.color_range
        converted.color_primaries, converted.color_trc = self.primaries, self.transfer
        return converted


def _suffix(path):
    return os.path.splitext(path)[1].lower()


def _period(fps):
    """Fraction: seconds from frame to frame, such as 1001/30000."""
    if fps < 1:
        return Fraction(1 / fps).limit_denominator(1001)
    return 1 / Fraction(fps).limit_denominator(1001)
