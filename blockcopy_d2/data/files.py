"""Reads and checks the files of a data set. Errors name the file that is missing or broken."""

import glob
import json
import os
import re

import numpy as np
from PIL import Image

__all__ = [
    "AnnotationError",
    "find_files",
    "image_size",
    "read_json",
    "read_labels",
    "require_file",
    "require_folder",
]


class AnnotationError(ValueError):
    """Annotations that cannot be used. The message names the file or the data set."""


def read_json(path):
    """
    Args:
        path (str): path of a file of annotations.

    Returns:
        object: its content.

    Raises:
        FileNotFoundError: there is no such file.
        AnnotationError: the file is empty, truncated or not JSON.
    """
    with open(path, "rb") as f:
        content = f.read()
    if not content.strip():
        raise AnnotationError(f"The annotations {path} are empty; expected JSON.")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"The annotations {path} are not JSON: {error}") from error


def read_labels(path, size=None):
    """
    Args:
        path (str): path of an image with one number per pixel, such as a class.
        size (tuple[int, int] or None): height and width that it must have.

    Returns:
        ndarray: integers, (H, W).

    Raises:
        FileNotFoundError: there is no such file.
        AnnotationError: the file is truncated, not an image, a colour image, or of another size.
    """
    try:
        with Image.open(path) as image:
            labels = np.asarray(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"The labels {path} are missing.") from None
    except Exception as error:
        # Pillow's decoders raise errors of many types for broken files.
        raise AnnotationError(f"The labels {path} cannot be read: {error}") from error
    if labels.ndim != 2 or labels.dtype.kind not in "biu":
        raise AnnotationError(
            f"The labels {path} are an image of shape {labels.shape} and type {labels.dtype};"
            " expected one integer per pixel."
        )
    if size is not None and labels.shape != tuple(size):
        raise AnnotationError(
            f"The labels {path} are {labels.shape[1]}x{labels.shape[0]}, their frame is"
            f" {size[1]}x{size[0]}."
        )
    return labels


def image_size(path):
    """
    Args:
        path (str): path of an image.

    Returns:
        tuple[int, int]: width and height.

    Raises:
        FileNotFoundError: there is no such file.
        AnnotationError: the file is not an image.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except FileNotFoundError:
        raise
    except Exception as error:
        raise AnnotationError(f"{path} is not a readable image: {error}") from error


def find_files(folder, pattern, root, origin):
    """
    Args:
        folder (str):
        pattern (str): pattern of names in it, such as ``<city>/*.png``; ``<city>`` stands for any
            name.
        root (str): root of the data set.
        origin (str): a sentence that says where it comes from.

    Returns:
        list[str]: sorted.

    Raises:
        FileNotFoundError: there are none.
    """
    files = sorted(glob.glob(os.path.join(glob.escape(folder), re.sub("<[^>]*>", "*", pattern))))
    if not files:
        raise FileNotFoundError(_missing(f"Files {folder}/{pattern} are", root, origin))
    return files


def require_file(path, what, root, origin):
    """
    Args:
        path (str):
        what (str): role of the file in the data set.
        root, origin (str): see :func:`find_files`.

    Raises:
        FileNotFoundError: the file is missing.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(_missing(f"{path}, {what}, is", root, origin))


def require_folder(folder, root, origin):
    """
    Args:
        folder, root, origin (str): see :func:`find_files`.

    Raises:
        FileNotFoundError: the folder is missing.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(_missing(f"The folder {folder} is", root, origin))


def _missing(what, root, origin):
    return (
        f"{what} missing. {origin} "
        f"The data set was looked for in {os.path.abspath(root)}; the environment variable "
        f"DETECTRON2_DATASETS names the folder above it "
        f"(now {os.getenv('DETECTRON2_DATASETS', 'not set: ./datasets')})."
    )
