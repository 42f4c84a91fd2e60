"""
Checks names of files to write, and refuses those that would lose a file before anything happens.
"""

import os
import stat

from detectron2.config import CfgNode
from omegaconf import OmegaConf

from blockcopy_d2.data import redact
from blockcopy_d2.data.addresses import is_address

__all__ = [
    "check_output",
    "check_plot",
    "refuse_overwriting",
    "refuse_shared_outputs",
    "weight_files",
]

_PICTURES = (".png", ".pdf", ".svg", ".jpg", ".webp")


def check_output(path, expected="a file"):
    """
    Args:
        path (str or PathLike): path of a file to write at the end of a long run.
        expected (str): kind of file, for the error.

    Raises:
        OSError: it cannot be written.
        ValueError: it is an address.
    """
    path = os.fsdecode(path)
    if is_address(path):
        raise ValueError(f"{redact(path)} is an address; expected the name of {expected}.")
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a folder; expected the name of {expected}.")
    folder = os.path.dirname(os.path.realpath(path))
    if os.path.exists(path) and not os.path.isfile(path):
        places = [path]  # A device or pipe is written to as it is.
    elif not os.path.isdir(folder):
        raise FileNotFoundError(f"There is no folder {folder} to write {path} to.")
    else:
        # The file is replaced by a new one, made beside it.
        places = [folder, path] if os.path.exists(path) else [folder]
    for place in places:
        if not os.access(place, os.W_OK):
            raise PermissionError(f"{path} cannot be written: {place} is write-protected.")


def check_plot(path):
    """
    :func:`check_output` of a plot.

    Args:
        path (str or PathLike): path of a picture to draw at the end of a long run.

    Raises:
        OSError: it cannot be written.
        ValueError: it is an address, or its ending is none of a picture.
    """
    check_output(path, "a picture")
    if os.path.splitext(os.fsdecode(path))[1].lower() not in _PICTURES:
        raise ValueError(f"{os.fsdecode(path)} must end in one of {', '.join(_PICTURES)}.")


def refuse_overwriting(output, inputs):
    """
    Args:
        output (str or PathLike): path of a file to write.
        inputs (iterable[str or None]): files, folders of frames and addresses that are read.

    Raises:
        ValueError: ``output`` is one of them, under any name, or lies in such a folder.
    """
    output = os.fsdecode(output)
    for source in inputs:
        if not source:
            continue
        path = os.fsdecode(source).rpartition("file://")[2]
        if os.path.isdir(path):
            _refuse_frames(output, path)
        elif _same(output, path):
            raise ValueError(
                f"The output {redact(output)} is the input {redact(source)}, which would be lost."
                " Choose another name for the output."
            )


def refuse_shared_outputs(outputs):
    """
    Args:
        outputs (dict[str, str]): the file to write for each input.

    Raises:
        ValueError: two inputs would be written to one file.
    """
    taken = {}
    for source, output in outputs.items():
        other = taken.setdefault(os.path.realpath(output), source)
        if other != source:
            raise ValueError(
                f"{redact(other)} and {redact(source)} would both be written to {redact(output)}."
                " Run them one by one, or give them different names."
            )


def weight_files(cfg):
    """
    Args:
        cfg (CfgNode or DictConfig):

    Returns:
        tuple[str or None, str or None]: the weights of the network and of the policy.
    """
    if isinstance(cfg, CfgNode):
        return cfg.MODEL.WEIGHTS, cfg.MODEL.BLOCKCOPY.POLICY.WEIGHTS
    keys = ("train.init_checkpoint", "blockcopy.policy_weights")
    return tuple(OmegaConf.select(cfg, key) for key in keys)


def _refuse_frames(output, folder):
    parent = os.path.dirname(os.path.realpath(output))
    inside = os.path.isdir(parent) and os.path.samefile(parent, folder)
    if inside or any(_same(output, entry.path) for entry in os.scandir(folder)):
        raise ValueError(
            f"The output {redact(output)} lies in the folder of frames {redact(folder)}. Choose a"
            " name in another folder."
        )


def _same(output, path):
    """
    Returns whether both are one existing file. A device, such as /dev/null, is not
    lost.
    """
    try:
        found, other = os.stat(output), os.stat(path)
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(found.st_mode) and os.path.samestat(found, other)
