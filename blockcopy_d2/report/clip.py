"""Pictures of a run: the clip of both results side by side, and the heat map of the policy."""

import io
import os

import numpy as np
from matplotlib import colormaps
from PIL import Image

from blockcopy_d2.visualization import VideoWriter, draw_frame

__all__ = ["ComparisonClip", "heat_map", "to_jpeg"]

_SEGMENTATION_ALPHA = 0.45
_HEAT_ALPHA = 0.62
HEAT_COLORS = colormaps["inferno"]


class ComparisonClip:
    """
    A video of the dense result on the left and the accelerated one, with its executed blocks, on
    the right. A context manager. Its file stops growing at ``max_bytes``.

    Attributes:
        frames (int): number of frames drawn so far.
        poster (ndarray or None): uint8, BGR, the last frame drawn.
    """

    def __init__(
        self,
        path,
        fps,
        *,
        format=None,
        metadata=None,
        width=1280,
        threshold=0.5,
        max_bytes=14e6,
        cell_size=None,
    ):
        """
        Args:
            path (str): path of the file to write, .mp4.
            fps (float):
            format (VideoFormat or None): format of the video, see :class:`VideoWriter`.
            metadata (Metadata or None): Detectron2's metadata, which name the classes.
            width (int): width of the clip in pixels, at most.
            threshold (float): instances with a lower score are not drawn.
            max_bytes (float): size of the file after which frames are left out.
            cell_size (int or None): cell size of the motion, to be drawn on the right; None: it is
                not.

        Raises:
            OSError: the file cannot be written.
        """
        self.path = os.fspath(path)
        self.frames = 0
        self.poster = None
        self._writer = VideoWriter(self.path, fps, format=format)
        self._metadata = metadata
        self._width = width
        self._threshold = threshold
        self._max_bytes = max_bytes
        self._cell_size = cell_size

    def add(self, image, dense, dense_seconds, result, seconds, scale, shown_at=None):
        """
        Args:
            image (ndarray): uint8, (H, W, 3), BGR.
            dense (dict): output of the dense model.
            dense_seconds (float): its time.
            result (FrameResult): result of BlockCopy.
            seconds (float): its time.
            scale (float): pixels of the network's input per pixel of ``image``.
            shown_at (float or None): seconds from the first frame; None: at the video's rate.
        """
        if self.frames and self._writer.size > self._max_bytes:
            return
        left = self._draw(image, dense, caption=("dense", f"{1000 * dense_seconds:.0f} ms"))
        motion = {}
        if self._cell_size is not None and result.field is not None:
            motion = {"field": result.field[0].cpu(), "cell_size": self._cell_size}
        right = self._draw(
            image,
            result,
            caption=("BlockCopy", f"{result.executed:.0%} executed", f"{1000 * seconds:.0f} ms"),
            active=result.grid.active[0].cpu(),
            block_size=result.grid.block_size,
            scale=scale,
            **motion,
        )
        gap = np.full((left.shape[0], max(2, left.shape[1] // 160), 3), 24, dtype=np.uint8)
        self.poster = _fit(np.concatenate([left, gap, right], axis=1), self._width)
        self._writer.write(self.poster, shown_at)
        self.frames += 1

    def _draw(self, image, output, **options):
        if "instances" not in output:
            classes = output["sem_seg"].argmax(dim=0).cpu().numpy()
            return draw_frame(_paint(image, classes, self._metadata), None, **options)
        instances = output["instances"]
        instances = instances[instances.scores >= self._threshold]
        return draw_frame(image, instances, metadata=self._metadata, **options)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._writer.__exit__(*exc_info)


def heat_map(image, share, side, width=1000):
    """
    Args:
        image (ndarray): uint8, (H, W, 3), BGR.
        share (ndarray): float (GH, GW) in [0, 1], share of the frames that executed each block.
        side (float): side of a block in pixels of ``image``.
        width (int): width of the result in pixels, at most.

    Returns:
        ndarray: uint8, BGR; the image in grey under the colours of ``HEAT_COLORS``.
    """
    height, full_width = image.shape[:2]
    rows = np.minimum((np.arange(height) / side).astype(int), share.shape[0] - 1)
    columns = np.minimum((np.arange(full_width) / side).astype(int), share.shape[1] - 1)
    colors = 255 * HEAT_COLORS(share)[..., 2::-1][rows][:, columns]
    grey = image.mean(axis=2, keepdims=True)
    mixed = (1 - _HEAT_ALPHA) * grey + _HEAT_ALPHA * colors
    return _fit(mixed.round().astype(np.uint8), width)


def to_jpeg(image, quality=85):
    """bytes: JPEG of a uint8 BGR image."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image[:, :, ::-1])).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _fit(image, width):
    if image.shape[1] <= width:
        return image
    height = round(image.shape[0] * width / image.shape[1])
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))


def _paint(image, classes, metadata):
    """Tints every pixel in the colour of its class."""
    colors = None if metadata is None else metadata.get("stuff_colors")
    if not colors or len(colors) <= classes.max():
        colors = 255 * colormaps["tab20"](np.arange(classes.max() + 1) % 20)[:, :3]
    tint = np.asarray(colors, dtype=np.float32)[:, ::-1][classes]
    return (image + _SEGMENTATION_ALPHA * (tint - image)).round().astype(np.uint8)
