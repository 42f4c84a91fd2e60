"""Pictures of any depth as a model takes them: BGR, eight bits."""

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps

__all__ = ["from_pil", "read_picture"]


def read_picture(path, format="BGR"):
    """
    As Detectron2's ``read_image``, which turns pictures of more than eight bits white.

    Args:
        path (str):
        format (str): what ``read_image`` takes.

    Returns:
        ndarray: uint8, (H, W, 3) for "BGR" and "RGB".

    Raises:
        ValueError: numbers that are in no known range.
        Exception: whatever Pillow raises for a broken picture.
    """
    with PathManager.open(path, "rb") as f:
        return from_pil(Image.open(f), format)


def from_pil(picture, format="BGR"):
    """
    Args:
        picture (PIL.Image.Image): of any mode; turned upright by its EXIF data.
        format (str): what Detectron2's ``read_image`` takes.

    Returns:
        ndarray: uint8, (H, W, 3) for "BGR" and "RGB".

    Raises:
        ValueError: numbers that are in no known range.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F" or picture.mode.startswith("I"):
        picture = Image.fromarray(_eight_bits(np.asarray(picture)))
    return convert_PIL_to_numpy(picture, format)


def _eight_bits(values):
    """Of whole numbers up to 65535, or of real ones from 0 to 1: uint8."""
    real = values.dtype.kind == "f"
    lowest, highest = values.min(), values.max()
    # Written so that NaN is out of range, too.
    if not (lowest >= 0 and highest <= (1 if real else 65535)):
        raise ValueError(
            f"a picture of {'real' if real else 'whole'} numbers from {lowest:g} to {highest:g};"
            f" expected {'0 to 1' if real else '0 to 65535'}. Save it with 8 or 16 bits"
        )
    scaled = values * 255 if real else values / 257
    return np.rint(scaled).astype(np.uint8)
