"""Frames of a video file, a camera, an address or a folder of images, one at a time."""

import functools
import numbers
import os
from fractions import Fraction

import numpy as np
import torch

from blockcopy_d2.config_key import choice, number

from .addresses import is_address, redact
from .clips import FrameReadError
from .image_folder import IMAGE_EXTENSIONS, ImageFolder
from .pictures import as_picture
from .read_ahead import call_aside
from .torchcodec_video import DECODERS, choose_decoder
from .video_decoding import DecodedVideo
from .video_format import VideoFormat

__all__ = ["FrameSizeError", "OwnFrames", "VideoFormat", "VideoFrames", "open_frames"]

_DECODER = choice(*DECODERS)
_RATE = number(25.0, least=0, most=1e6, open_ends=True)


class FrameSizeError(FrameReadError):
    """A frame of another size than those before it."""


class VideoFrames:
    """
    Iterates over the frames of a video as BGR uint8 arrays (H, W, 3). Memory does not grow with
    the length of the video. Each iteration starts at the first frame.

    A broken stretch of a video file is skipped, and a truncated file ends early. Both are logged as
    a warning that names file and frame. Videos that are turned or mirrored by a display matrix, as
    phones write them, come out upright. Colours are decoded by the matrix and range that the file
    names, or by BT.709 for HD and BT.601 for smaller videos.

    Attributes:
        source (str): the source as it may be shown: an address has no user, password and query.
        name (str): name of the video, without folder and extension.
        fps (float): frames per second.
        width, height (int): width and height of the frames in pixels, upright.
        num_frames (int or None): None if the file does not say.
        video_format (VideoFormat): rate, clock, shape of pixels and colours.
        live (bool): whether it is a camera, or an address that streams without an end. It goes on
            without being read, so a slow reader should take its newest frame, see
            :func:`read_ahead`.
    """

    def __init__(self, source, *, default_fps=25.0, decoder="pyav", device="cpu"):
        """
        Args:
            source (str, bytes or PathLike): a video file, a camera such as ``/dev/video0``, an
                address such as ``rtsp://...``, or a folder of images, taken in natural order of
                their names.
            default_fps (float): rate of sources without one, such as a folder.
            decoder (str): "pyav"; "torchcodec"; or "auto": torchcodec where it is installed and
                ``device`` is a GPU that decodes the file. Files that torchcodec cannot decode as
                PyAV does are left to PyAV, and the log says why.
            device (torch.device or str): where torchcodec decodes. Frames of a GPU are tensors,
                uint8 (H, W, 3), BGR, and stay there.

        Raises:
            ImportError: torchcodec is asked for by name, and is missing; names the extra.
            FileNotFoundError: ``source`` does not exist, or the folder holds no image.
            ValueError: ``source`` is not a video, or ``default_fps`` is not a rate.
            FrameReadError: its first frame cannot be decoded.
        """
        source = os.fsdecode(source)
        default_fps = _RATE.check("default_fps", default_fps)
        decoder = _DECODER.check("decoder", decoder)
        if not os.path.exists(source) and not is_address(source):
            raise FileNotFoundError(
                f"{redact(source)} does not exist; expected a video or a folder."
            )
        rate = Fraction(default_fps).limit_denominator(1001)
        # FFmpeg reads single images as well, but not all depths, and no EXIF data.
        images = os.path.isdir(source) or (
            os.path.isfile(source) and source.lower().endswith(IMAGE_EXTENSIONS)
        )
        self._reader = (ImageFolder if images else DecodedVideo)(source, rate)
        self.source, self.name = self._reader.shown, self._reader.name
        # On another thread, so that an interrupt need not wait for a silent server.
        first = call_aside(self._reader.probe)
        if first is None:
            raise FrameReadError(self.source, self.name, 0, "no frame can be decoded")
        if not images:
            self._reader = choose_decoder(self._reader, first, decoder, torch.device(device))
        self.height, self.width = first.shape[:2]
        self.video_format = self._reader.format
        self.fps = float(self.video_format.fps)
        self.num_frames, self.live = self._reader.num_frames, self._reader.live

    def __iter__(self):
        """
        Raises:
            FrameReadError: a frame changes size, an image of a folder cannot be read, or the
                connection breaks.
        """
        for image, _ in self.timed():
            yield image

    def timed(self):
        """
        Yields:
            tuple[ndarray, float]: each frame with the seconds from the first frame to when it is
            shown. They rise from 0 by the file's own clock, also at a variable rate.

        Raises:
            FrameReadError: as in plain iteration.
        """
        for image, seconds, _ in self.read():
            yield image, seconds

    def read(self, *, vectors=False):
        """
        Args:
            vectors (bool): make the decoder export the motion found by the encoder.

        Yields:
            tuple[ndarray, float, FrameVectors or None]: see :meth:`timed`; and where the content of
            the frame was in the frame before. None where a frame has no vectors: a key frame, a
            codec that exports none, an image.

        Raises:
            FrameReadError: as in plain iteration.
        """
        for index, (image, seconds, found) in enumerate(self._reader.read(vectors=vectors)):
            height, width = image.shape[:2]
            if (height, width) != (self.height, self.width):
                raise FrameSizeError(
                    self.source,
                    self.name,
                    index,
                    f"its size is {width}x{height}, the video's is {self.width}x{self.height}",
                )
            yield image, seconds, found


def open_frames(source, *, decoder="pyav", device="cpu"):
    """
    Args:
        source (str, PathLike, int or iterable): a source of :class:`VideoFrames`, the number of a
            camera, or any iterable of BGR arrays, PIL pictures, or tensors on a GPU, see
            :func:`as_picture`. Frames of an iterable are copied one by one, on their device, since
            it may reuse the memory of a frame for the next.
        decoder, device: see :class:`VideoFrames`; a VideoFrames stays as it is.

    Returns:
        VideoFrames or OwnFrames: an iterable of frames, uint8 (H, W, 3), BGR, with an attribute
        ``live`` and a method ``read``.

    Raises:
        TypeError: something else. For errors of a source see :class:`VideoFrames`.
    """
    if isinstance(source, numbers.Integral) and not isinstance(source, bool):
        source = f"/dev/video{source}"
    if isinstance(source, VideoFrames):
        return source
    if isinstance(source, (str, bytes, os.PathLike)):
        return VideoFrames(source, decoder=decoder, device=device)
    if not hasattr(source, "__iter__") and not hasattr(source, "__getitem__"):
        raise TypeError(
            f"A video is a path, an address, the number of a camera, or an iterable of frames; not"
            f" {type(source).__name__}."
        )
    shape = getattr(source, "shape", ())
    if len(shape) == 3 and shape[-1] == 3:
        raise TypeError(
            f"An array of shape {tuple(shape)} is one frame, not a video: call the predictor with"
            " it, or give a list of frames."
        )
    return OwnFrames(source)


class OwnFrames:
    """
    Copies of the frames of any iterable.

    Attributes:
        copy (callable): copies an array.
    """

    live = False

    def __init__(self, frames):
        """
        Args:
            frames (iterable): pictures for :func:`as_picture`.
        """
        self._frames = frames
        self.copy = functools.partial(np.array, order="C")

    def read(self, *, vectors=False):
        """See :meth:`VideoFrames.read`. There are no times and vectors."""
        for frame in self:
            yield frame, None, None
            del frame

    def __iter__(self):
        iterator = iter(self._frames)
        try:
            for frame in iterator:
                # Copied before the iterator goes on, which may overwrite the frame.
                frame = as_picture(frame)
                if isinstance(frame, np.ndarray):
                    frame = self.copy(frame)
                else:
                    # On the current stream, where the iterator works, too.
                    frame = frame.clone(memory_format=torch.contiguous_format)
                yield frame
                del frame
        finally:
            if hasattr(iterator, "close"):
                iterator.close()
