"""Converts pictures of any depth to a model's input: BGR, eight bits."""

import numpy as np
import torch
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps

__all__ = ["as_frame", "as_picture", "from_pil", "read_picture"]

# DLPack's kDLCUDA and kDLCUDAManaged.
_GPU = (2, 13)


def read_picture(path, format="BGR"):
    """
    Reads a picture like Detectron2's ``read_image``, but scales depths above eight bits, which that
    function turns white.

    Args:
        path (str):
        format (str): a format of ``read_image``.

    Returns:
        ndarray: uint8, (H, W, 3) for "BGR" and "RGB".

    Raises:
        ValueError: the range of its numbers is unknown.
        Exception: any that Pillow raises for a broken picture.
    """
    with PathManager.open(path, "rb") as f:
        return from_pil(Image.open(f), format)


def from_pil(picture, format="BGR"):
    """
    Args:
        picture (PIL.Image.Image): picture of any mode; turned upright by its EXIF data.
        format (str): a format of Detectron2's ``read_image``.

    Returns:
        ndarray: uint8, (H, W, 3) for "BGR" and "RGB".

    Raises:
        ValueError: the range of its numbers is unknown.
    """
    # Older releases of Pillow report 16-bit PNGs as 32-bit ones.
    sixteen = picture.mode.startswith("I;16") or (picture.mode, picture.format) == ("I", "PNG")
    picture = ImageOps.exif_transpose(picture)
    if sixteen:
        values = np.rint(np.asarray(picture) / 257)
    elif picture.mode == "F":
        values = np.asarray(picture)
        # Written so that NaN is out of range, too.
        if not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(
                f"its real numbers go from {values.min():g} to {values.max():g}; expected 0 to 1."
                " Save it with 8 or 16 bits"
            )
        values = np.rint(values * 255)
    elif picture.mode.startswith("I"):
        raise ValueError(
            f"its numbers have 32 bits (mode {picture.mode}), whose range is unknown. Save it with"
            " 8 or 16 bits"
        )
    else:
        return convert_PIL_to_numpy(picture, format)
    return convert_PIL_to_numpy(Image.fromarray(values.astype(np.uint8)), format)


def as_frame(picture):
    """
    Args:
        picture (ndarray or PIL.Image.Image): uint8, (H, W, 3), BGR; a PIL picture has its own
            order of colours.

    Returns:
        ndarray: uint8, (H, W, 3), BGR; the same memory if it is an array.

    Raises:
        TypeError: something else.
        ValueError: another shape or type of numbers.
    """
    if isinstance(picture, Image.Image):
        return from_pil(picture)
    if not isinstance(picture, np.ndarray):
        kind = type(picture)
        raise TypeError(
            f"A frame is a {kind.__module__}.{kind.__qualname__}; expected a numpy array, uint8 of"
            " shape (height, width, 3), in BGR, or a PIL picture."
            + (" Call .numpy()." if isinstance(picture, torch.Tensor) else "")
        )
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
        raise ValueError(
            f"A frame is {picture.dtype} of shape {picture.shape}; expected uint8 of shape"
            f" (height, width, 3), in BGR.{_advice(picture)}"
        )
    return picture


def _advice(picture):
    """str: how an array that people often have becomes a frame."""
    if picture.size and picture.dtype == np.uint8:
        if picture.ndim == 2:
            return " Of a grey picture: np.stack([picture] * 3, axis=2)."
        if picture.ndim == 3 and picture.shape[2] == 1:
            return " Of a grey picture: picture.repeat(3, axis=2)."
        if picture.ndim == 3 and picture.shape[2] == 4:
            return " Without its alpha channel: picture[..., :3]."
        if picture.ndim == 3 and picture.shape[0] == 3:
            return " With the channels last: picture.transpose(1, 2, 0)."
    elif picture.ndim == 3 and np.issubdtype(picture.dtype, np.floating):
        return " Of values from 0 to 1: (picture * 255).round().astype(np.uint8)."
    return ""


def as_picture(picture):
    """
    :func:`as_frame` for pictures on a GPU, too, which stay there.

    Args:
        picture (ndarray, PIL.Image.Image or tensor): see :func:`as_frame`; or anything on a GPU
            that supports DLPack, uint8, (H, W, 3) or (3, H, W), BGR. (3, W, 3) has three rows.

    Returns:
        ndarray or Tensor: uint8, (H, W, 3), BGR; the same memory, but for PIL pictures.

    Raises:
        TypeError: something else, such as a tensor on the CPU.
        ValueError: another shape or type of numbers.
    """
    if not _lies_on_gpu(picture):
        try:
            return as_frame(picture)
        except TypeError as error:
            raise TypeError(f"{error} Pictures on a GPU may be tensors.") from None
    if not isinstance(picture, torch.Tensor):
        picture = torch.from_dlpack(picture)
    shape = tuple(picture.shape)
    if picture.dtype == torch.uint8 and len(shape) == 3 and picture.numel():
        if shape[2] == 3:
            return picture
        if shape[0] == 3:
            return picture.permute(1, 2, 0)
    raise ValueError(
        f"A frame on a GPU is {str(picture.dtype).removeprefix('torch.')} of shape {shape};"
        " expected uint8 of shape (height, width, 3) or (3, height, width), in BGR."
    )


def _lies_on_gpu(picture):
    if isinstance(picture, torch.Tensor):
        return picture.is_cuda
    return hasattr(picture, "__dlpack_device__") and picture.__dlpack_device__()[0] in _GPU
