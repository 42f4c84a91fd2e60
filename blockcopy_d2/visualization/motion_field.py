"""
Draws the motion of a picture in colours: the hue of a cell is the direction of its motion, the
strength its length.

Shape shorthand: an image of H x W pixels under a field of GH x GW cells.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["draw_motion"]

# Opacity of cells that hardly moved, and of those that moved as far as the legend's rim.
_LEAST_ALPHA, _MOST_ALPHA = 0.25, 0.7
# Saturation of the shortest vectors, whose direction should be visible, too.
_LEAST_SATURATION = 0.4
# Share of the moved cells within the legend's rim.
_WITHIN = 0.95
_LEGEND_BACKGROUND, _LEGEND_TEXT = (24, 24, 24), (235, 235, 235)


def draw_motion(image, field, *, cell_size, scale=1.0):
    """
    Args:
        image (ndarray): uint8, (H, W, 3), BGR. It stays as it is.
        field (Tensor or ndarray): float (2, GH, GW), see :mod:`blockcopy_d2.motion.field`: where
            the content of each cell was one frame ago.
        cell_size (int): side of a cell in pixels of the network's input.
        scale (float): pixels of the network's input per pixel of ``image``.

    Returns:
        ndarray: uint8, (H, W, 3), BGR: moved cells in their colours, still ones unchanged, and a
        colour wheel as the legend. Its rim stands for the printed number of pixels of ``image`` per
        frame.
    """
    # A source to the right means motion to the left.
    went = -np.asarray(field, dtype=np.float32) / scale
    length = np.hypot(*went)
    rim = _rim(length)
    alpha = _LEAST_ALPHA + (_MOST_ALPHA - _LEAST_ALPHA) * np.minimum(length / rim, 1)
    alpha = np.where(length > 0, alpha, 0)[..., None]
    cells = np.concatenate([_colors(*went / rim) * alpha, 1 - alpha], axis=2)
    height, width = image.shape[:2]
    rows = np.minimum((np.arange(height) * scale / cell_size).astype(int), cells.shape[0] - 1)
    columns = np.minimum((np.arange(width) * scale / cell_size).astype(int), cells.shape[1] - 1)
    cells = cells[rows][:, columns]
    picture = (image * cells[..., 3:] + cells[..., :3]).round().astype(np.uint8)
    _add_legend(picture, rim)
    return picture


def _rim(length):
    """int: the power of two that few cells exceed, at least 2."""
    moved = length[length > 0]
    longest = np.quantile(moved, _WITHIN) if moved.size else 0
    return 2 ** max(1, int(np.ceil(np.log2(max(longest, 1)))))


def _colors(right, down):
    """float (..., 3) in [0, 255], BGR; vectors of length 1 and more have full colours."""
    # Matplotlib is needed here alone.
    from matplotlib.colors import hsv_to_rgb

    hue = np.arctan2(down, right) / (2 * np.pi) % 1
    saturation = _LEAST_SATURATION + (1 - _LEAST_SATURATION) * np.minimum(np.hypot(right, down), 1)
    return 255 * hsv_to_rgb(np.stack([hue, saturation, np.ones_like(hue)], -1))[..., ::-1]


def _add_legend(picture, rim):
    """Draws the legend in the upper right corner, in place, if the picture has room for it."""
    radius = max(14, picture.shape[0] // 16)
    text_height = max(10, radius // 2)
    width, height = 2 * radius + 8, 2 * radius + text_height + 10
    if width > picture.shape[1] or height > picture.shape[0]:
        return
    y, x = (np.mgrid[-radius : radius + 1, -radius : radius + 1] / radius).astype(np.float32)
    box = np.empty((height, width, 3), np.uint8)
    box[:] = _LEGEND_BACKGROUND
    inside = np.hypot(x, y) <= 1
    box[4 : 5 + 2 * radius, 3 : 4 + 2 * radius][inside] = _colors(x, y)[inside].round()
    drawn = Image.fromarray(box)
    style = dict(anchor="mb", fill=_LEGEND_TEXT, font=ImageFont.load_default(text_height))
    ImageDraw.Draw(drawn).text((width / 2, height - 3), f"{rim} px", **style)
    picture[:height, -width:] = np.asarray(drawn)
