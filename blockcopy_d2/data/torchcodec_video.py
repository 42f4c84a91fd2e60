"""
Decoding a video file by torchcodec, on a CPU or on a GPU, where its frames then stay. Frames must
be those of PyAV: files that torchcodec would show otherwise are left to PyAV, by name.

Shape shorthand: H x W pixels of a frame.
"""

import logging

import numpy as np
import torch

__all__ = ["DECODERS", "TorchcodecVideo", "choose_decoder"]

DECODERS = ("auto", "pyav", "torchcodec")

# Levels of 255 by which the first frame may differ from PyAV's, on average. On a CPU they differ by
# rounding only; a GPU interpolates colours in another way, which shows at edges.
_MOST_DIFFERENCE = 3.0

_logger = logging.getLogger(__name__)


def choose_decoder(video, first, decoder, device):
    """
    Args:
        video (DecodedVideo): probed.
        first (ndarray): its first frame.
        decoder (str): "pyav"; "torchcodec", by name; or "auto": torchcodec where the device is a
            GPU that decodes the file.
        device (torch.device): where frames are wanted.

    Returns:
        DecodedVideo or TorchcodecVideo: the reader of the frames. Where torchcodec was asked for
        and cannot have the file, a warning says why PyAV reads it.

    Raises:
        ImportError: torchcodec was asked for by name, and is not installed, or finds no FFmpeg.
    """
    if decoder == "pyav" or (decoder == "auto" and device.type != "cuda"):
        return video
    try:
        import_torchcodec()
    except ImportError:
        if decoder == "torchcodec":
            raise
        return video
    reason = "it is not a file" if video.path is None else video.peculiarity
    if reason is None:
        chosen = TorchcodecVideo(video, device)
        reason = chosen.difference_from(first)
    if reason is None:
        return chosen
    level = logging.WARNING if decoder == "torchcodec" else logging.INFO
    _logger.log(level, "%s is decoded by PyAV, not by torchcodec: %s.", video.shown, reason)
    return video


def import_torchcodec():
    """
    Returns:
        module: ``torchcodec.decoders``.

    Raises:
        ImportError: names the extra, or another missing package.
    """
    try:
        import torchcodec.decoders
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "torchcodec":
            raise
        raise ImportError(
            "The decoder torchcodec is not installed: pip install 'blockcopy-d2[gpu-decode]', or"
            " choose --decoder pyav."
        ) from None
    except (ImportError, OSError, RuntimeError) as error:
        raise ImportError(
            "torchcodec cannot be loaded. It needs FFmpeg's shared libraries (on Debian: apt"
            " install ffmpeg) and the PyTorch that it was built for. It said:"
            f" {str(error).strip().splitlines()[0]}"
        ) from None
    return torchcodec.decoders


class TorchcodecVideo:
    """
    A video file that torchcodec can read. Each call of :meth:`read` opens it anew. Where decoding
    breaks, PyAV reads on.

    Attributes:
        shown, name, format, num_frames, live: see :class:`DecodedVideo`.
    """

    def __init__(self, video, device):
        """
        Args:
            video (DecodedVideo): probed.
            device (torch.device): device of the frames. On a CPU they are arrays.
        """
        self._video, self._device = video, device
        self.shown, self.name, self.format = video.shown, video.name, video.format
        self.num_frames, self.live = video.num_frames, video.live

    def difference_from(self, expected):
        """
        Args:
            expected (ndarray): the first frame, by PyAV.

        Returns:
            str or None: why it is not the first frame that torchcodec gives.
        """
        try:
            decoder = self._open()
            image = self._image(decoder.get_frame_at(0))
        except Exception as error:  # of any type; PyAV has read the file
            return _first_line(error)
        if self._device.type == "cuda" and decoder.cpu_fallback:
            return f"the GPU does not decode it ({decoder.cpu_fallback})"
        if isinstance(image, torch.Tensor):
            image = image.cpu().numpy()
        if image.shape != expected.shape:
            return f"its frames would be {image.shape}, not {expected.shape}"
        difference = np.abs(image.astype(np.int16) - expected).mean()
        if difference > _MOST_DIFFERENCE:
            return f"its first frame would differ by {difference:.1f} of 255 levels"
        return None

    def read(self, *, vectors=False):
        """
        See :meth:`VideoFrames.read`. On a GPU, frames are tensors there, uint8 (H, W, 3), BGR.
        """
        if vectors:
            # Only PyAV reports them.
            yield from self._video.read(vectors=True)
            return
        seconds, reason = None, None
        try:
            for image, seconds in self._frames():
                yield image, seconds, None
                del image
        except (RuntimeError, ValueError, OSError) as error:
            reason = _first_line(error)
        if reason is not None:
            _logger.warning("%s: PyAV reads on, for torchcodec says: %s.", self.shown, reason)
            for image, later, _ in self._video.read():
                if seconds is None or later > seconds:
                    yield image, later, None
                del image

    def _frames(self):
        decoder = self._open()
        begin, step = None, float(self.format.time_base or 0)
        seconds = 0.0
        for index in range(len(decoder)):
            frame = decoder.get_frame_at(index)
            begin = frame.pts_seconds if begin is None else begin
            # Broken files repeat a time, or go back.
            time = frame.pts_seconds - begin
            seconds = max(time, seconds + step) if index else 0.0
            yield self._image(frame), seconds
            del frame
        if self.num_frames and len(decoder) < self.num_frames:
            self._video.warn_if_incomplete(len(decoder))

    def _open(self):
        return import_torchcodec().VideoDecoder(
            f"file:{self._video.path}",
            stream_index=self._video.stream_index,
            dimension_order="NHWC",
            num_ffmpeg_threads=0,
            device=self._device,
        )

    def _image(self, frame):
        image = frame.data.flip(-1)
        return image if image.is_cuda else image.numpy()


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
