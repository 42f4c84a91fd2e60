"""Frames of a video file, a camera, an address or a folder of images, one at a time."""

import logging
import os
import re

import numpy as np
from detectron2.data.detection_utils import read_image

from .clips import FrameReadError

# Of an address, after which a server that is silent is given up.
_OPEN_SECONDS, _READ_SECONDS = 15.0, 30.0
IMAGE_EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class VideoFrames:
    """
    Iterates over the frames of a video as BGR uint8 arrays (H, W, 3). Memory does not grow with
    the length of the video. Each iteration starts at the first frame.

    A broken stretch of a video file is skipped, a file that ends early ends early; either is
    logged as a warning that names file and frame. A video turned by its display matrix, as phones
    write them, comes out upright.

    Attributes:
        name (str): of the video, without folder and extension.
        fps (float): frames per second.
        width, height (int): of the frames in pixels, upright.
        num_frames (int): None when the file does not tell.
    """

    def __init__(self, source, *, default_fps=25.0):
        """
        Args:
            source (str): a video file, a camera such as ``/dev/video0``, an address such as
                ``rtsp://...``, or a folder of images, taken in natural order of their names.
            default_fps (float): for sources that tell no rate, such as a folder.

        Raises:
            FileNotFoundError: ``source`` does not exist, or the folder holds no image.
            ValueError: ``source`` is not a video.
            FrameReadError: its first frame cannot be decoded.
        """
        source = os.fspath(source)
        if not os.path.exists(source) and "://" not in source:
            raise FileNotFoundError(f"{source} does not exist; expected a video or a folder.")
        if os.path.isdir(source):
            self._reader = _ImageFolder(source)
        else:
            self._reader = _VideoFile(source)
        self.source = source
        self.name = self._reader.name
        self.num_frames = self._reader.num_frames
        self.fps = self._reader.fps or default_fps
        # Only a decoded frame tells that the video can be decoded, and which way is up.
        first = next(iter(self._reader), None)
        if first is None:
            raise FrameReadError(source, self.name, 0, "no frame can be decoded")
        self.height, self.width = first.shape[:2]

    def __iter__(self):
        """
        Raises:
            FrameReadError: a frame changes size, an image of a folder cannot be read, or the
                connection breaks.
        """
        for index, image in enumerate(self._reader):
            height, width = image.shape[:2]
            if (height, width) != (self.height, self.width):
                raise FrameReadError(
                    self.source,
                    self.name,
                    index,
                    f"its size is {width}x{height}, the video's is {self.width}x{self.height}",
                )
            yield image


class _ImageFolder:
    fps = None

    def __init__(self, folder):
        self.name = os.path.basename(os.path.abspath(folder))
        names = [n for n in os.listdir(folder) if n.lower().endswith(IMAGE_EXTENSIONS)]
        if not names:
            raise FileNotFoundError(
                f"{folder} holds no image; expected files with the extensions "
                f"{', '.join(IMAGE_EXTENSIONS)}."
            )
        self._files = [os.path.join(folder, name) for name in sorted(names, key=_natural_key)]
        self.num_frames = len(self._files)

    def __iter__(self):
        for index, file in enumerate(self._files):
            try:
                yield read_image(file, format="BGR")
            except Exception as error:  # as in ClipMapper: Pillow raises many types
                raise FrameReadError(
                    file, self.name, index, f"not a readable image ({error})"
                ) from error


class _VideoFile:
    def __init__(self, source):
        self._source = source
        self.name = os.path.splitext(os.path.basename(source))[0]
        with self._open() as container:
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate
            self.fps = float(rate) if rate else None
            self.num_frames = stream.frames or None

    def _open(self):
        # PyAV is needed here alone; training a detector does without it.
        import av

        kind = "v4l2" if self._source.startswith("/dev/video") else None
        timeout = (_OPEN_SECONDS, _READ_SECONDS) if "://" in self._source else None
        try:
            container = av.open(self._source, format=kind, timeout=timeout)
        except av.error.ExitError as error:
            raise ValueError(
                f"{self._source} does not answer within {_OPEN_SECONDS:g} seconds."
            ) from error
        except av.FFmpegError as error:
            raise ValueError(f"{self._source} cannot be read as a video: {error}") from error
        if not container.streams.video:
            container.close()
            raise ValueError(f"{self._source} has no video stream.")
        return container

    def __iter__(self):
        import av

        index, broken_at = 0, None
        try:
            with self._open() as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                for packet in container.demux(stream):
                    try:
                        frames, broken = packet.decode(), False
                    except av.InvalidDataError:
                        frames, broken = [], True
                    if broken_at is None and (broken or any(f.is_corrupt for f in frames)):
                        broken_at = index
                    for frame in frames:
                        yield _upright(frame)
                        index += 1
        except av.error.ExitError as error:
            reason = f"nothing came for {_READ_SECONDS:g} seconds"
            raise FrameReadError(self._source, self.name, index, reason) from error
        except av.FFmpegError as error:
            raise FrameReadError(self._source, self.name, index, str(error)) from error
        self._warn_if_incomplete(index, broken_at)

    def _warn_if_incomplete(self, decoded, broken_at):
        logger = logging.getLogger(__name__)
        if broken_at is not None:
            logger.warning("%s is broken from frame %d on in places.", self._source, broken_at)
        if self.num_frames and decoded < self.num_frames:
            logger.warning(
                "%s ends after frame %d; its header announces %d frames. Is it truncated?",
                self._source,
                decoded - 1,
                self.num_frames,
            )


def _upright(frame):
    """PyAV frame to BGR uint8 (H, W, 3), turned as the file's display matrix says."""
    image = frame.to_ndarray(format="bgr24")
    if frame.rotation % 360:
        image = np.ascontiguousarray(np.rot90(image, frame.rotation // 90))
    return image


def _natural_key(name):
    # Splitting by a group puts the numbers at the odd places.
    parts = re.split(r"(\d+)", name.lower())
    parts[1::2] = map(int, parts[1::2])
    return parts
