"""Writing video files that play everywhere: H.264, yuv420p, index in front."""

import os
from fractions import Fraction

import av
import numpy as np

__all__ = ["VideoWriter"]


class VideoWriter:
    """
    Streams frames into a video file, holding none of them. A context manager: leaving it, also by
    an exception or an interrupt, finishes the file, so that it plays up to there.

    The first frame sets the size. H.264 with yuv420p needs even sizes: an odd one is extended by
    repeating the last row or column.
    """

    def __init__(self, path, fps):
        """
        Args:
            path (str): of the file; its suffix names the container (.mp4, .mkv, .mov ...).
            fps (float): frames per second.

        Raises:
            OSError: the file cannot be written there.
            ValueError: the suffix names no container, or ``fps`` is not positive.
        """
        if not fps > 0:
            raise ValueError(f"A video needs a positive number of frames per second, not {fps}.")
        self.path = os.fspath(path)
        self.frames = 0
        self._rate = Fraction(fps).limit_denominator(1001)
        self._stream = None
        try:
            # Tried out, since the container itself is opened at its first frame.
            with open(self.path, "wb"):
                pass
            self._container = av.open(self.path, "w", options={"movflags": "+faststart"})
        except OSError as error:
            raise type(error)(f"Cannot write the video {self.path}: {error}") from error
        except ValueError as error:
            os.remove(self.path)
            raise ValueError(
                f"Cannot write the video {self.path}: its suffix names no video format."
                " Use .mp4, .mkv or .mov."
            ) from error

    def write(self, frame):
        """
        Args:
            frame (ndarray): uint8, (H, W, 3), BGR; as large as the first one.
        """
        height, width = frame.shape[:2]
        if self._stream is None:
            self._size = height, width
            self._stream = self._open_stream(height + height % 2, width + width % 2)
        elif (height, width) != self._size:
            raise ValueError(
                f"{self.path}: frame {self.frames} is {width}x{height}, but the video is"
                f" {self._size[1]}x{self._size[0]}. Start another file for another size."
            )
        frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(frame, format="bgr24")
        self._container.mux(self._stream.encode(picture))
        self.frames += 1

    def _open_stream(self, height, width):
        stream = self._container.add_stream("libx264", rate=self._rate)
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "20", "preset": "veryfast"}
        return stream

    def close(self):
        """Finish the file. A video without a single frame leaves no file behind."""
        if self._container is None:
            return
        container, self._container = self._container, None
        if self._stream is not None:
            container.mux(self._stream.encode())
        container.close()
        if self._stream is None:
            os.remove(self.path)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()
