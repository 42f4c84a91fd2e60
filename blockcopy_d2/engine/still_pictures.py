"""Single pictures, each run for itself and drawn to a file: ``demo.py --input``."""

import contextlib
import io
import os
from urllib.parse import urlsplit

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image
from tqdm import tqdm

from blockcopy_d2.atomic import atomic_write
from blockcopy_d2.data import read_picture, redact
from blockcopy_d2.data.addresses import is_address, name_of
from blockcopy_d2.visualization import draw_frame, found_instances, pixel_classes

from .outputs import check_output, refuse_overwriting, refuse_shared_outputs

__all__ = ["picture_target", "picture_targets", "run_pictures", "shown_instances"]


def picture_targets(args):
    """
    Args:
        args (Namespace): with ``input``, a list of pictures, and ``output``.

    Returns:
        dict[str, str]: the file to write for each picture.

    Raises:
        OSError, ValueError: a picture that cannot be read, or a file that cannot be written or
            would replace a picture.
    """
    if args.output is None or (len(args.input) > 1 and not os.path.isdir(args.output)):
        raise ValueError(f"{len(args.input)} pictures need --output FOLDER, one that exists.")
    for path in args.input:
        if os.path.isdir(path):
            raise IsADirectoryError(f"{path} is a folder; --video-input takes folders of frames.")
        # Code that downloads an address shows all of it beside the progress bar.
        quiet = contextlib.redirect_stderr(io.StringIO()) if is_address(path) else None
        with _reading(path), quiet or contextlib.nullcontext(), PathManager.open(path, "rb") as f:
            Image.open(f)
    targets = {path: picture_target(path, args.output) for path in args.input}
    for target in targets.values():
        _check_picture_format(target)
        check_output(target)
        refuse_overwriting(target, args.input)
    refuse_shared_outputs(targets)
    return targets


def picture_target(path, output):
    """str: the file to write for a picture; ``output`` is that file, or its folder."""
    if not os.path.isdir(output):
        return output
    name = os.path.basename(path)
    if is_address(path):
        # Its query may hold secrets.
        name = name_of(path) + os.path.splitext(urlsplit(path).path)[1]
    return os.path.join(output, name)


def _check_picture_format(path):
    """Raises ValueError if the suffix names no format for a colour picture."""
    kind = Image.registered_extensions().get(os.path.splitext(path)[1].lower())
    try:
        Image.new("RGB", (8, 8)).save(io.BytesIO(), kind or "none")
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(
            f"Cannot write the picture {path}: its suffix names no format that takes it. Use one"
            " picture and --output FILE.png, or pictures of another suffix."
        ) from error


@contextlib.contextmanager
def _reading(path):
    try:
        yield
    except Exception as error:  # Pillow raises many types.
        raise ValueError(f"{redact(path)} cannot be read as a picture: {error}") from error


def run_pictures(predictor, targets, threshold):
    """
    Args:
        predictor (callable): of :func:`dense_predictor`.
        targets (dict[str, str]): the file to write for each picture.
        threshold (float): minimum score of the instances to draw.

    Raises:
        ValueError: a picture cannot be read.
    """
    for path, target in tqdm(targets.items(), unit="picture"):
        with _reading(path):
            image = read_picture(path)
        output = predictor(image)
        instances = shown_instances(output, threshold)
        classes = pixel_classes(output)
        picture = draw_frame(image, instances, metadata=predictor.metadata, classes=classes)
        with atomic_write(target) as temporary:
            Image.fromarray(np.ascontiguousarray(picture[:, :, ::-1])).save(temporary)


def shown_instances(output, threshold):
    """Instances or None: those of an output whose scores reach the threshold."""
    instances = found_instances(output)
    return None if instances is None else instances[instances.scores >= threshold]
