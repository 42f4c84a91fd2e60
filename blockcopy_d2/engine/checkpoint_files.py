"""Reads checkpoint files without executing code from them, and detects damaged ones."""

import pickle
import zipfile

import numpy as np
import torch

__all__ = ["UnreadableCheckpointError", "check_parameters", "not_finite", "read_checkpoint"]

_CHUNK = 1 << 20


class UnreadableCheckpointError(ValueError):
    """A file that is damaged, or not a checkpoint."""


def read_checkpoint(path):
    """
    Args:
        path (str): a local file that ``torch.save`` wrote.

    Returns:
        dict: its content, on the CPU. Only tensors and plain values are read.

    Raises:
        UnreadableCheckpointError: the file holds something else, or is damaged.
        OSError: it cannot be opened.
    """
    with open(path, "rb") as f:
        try:
            _check_sums(f)
            f.seek(0)
            loaded = torch.load(f, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise UnreadableCheckpointError(
                f"{path} is not a checkpoint, or holds more than tensors and plain values; it is"
                f" not loaded, since that could execute code from it: {error}"
            ) from error
        except Exception as error:
            # Damaged bytes make the unpickler raise errors of many types.
            raise UnreadableCheckpointError(
                f"{path} is not a readable checkpoint: {error}"
            ) from error
    if not isinstance(loaded, dict):
        raise UnreadableCheckpointError(
            f"{path} holds a {type(loaded).__name__}; expected a dict of parameters by name."
        )
    return loaded


def check_parameters(parameters, path):
    """
    Args:
        parameters: the model in the file ``path``.
        path (str): for the error.

    Raises:
        UnreadableCheckpointError: they are not tensors by name.
    """
    if not isinstance(parameters, dict):
        raise UnreadableCheckpointError(
            f"The model in {path} is a {type(parameters).__name__}; expected a dict of parameters"
            " by name."
        )
    for name, value in parameters.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor | np.ndarray):
            raise UnreadableCheckpointError(
                f"The model in {path} has a {type(value).__name__} named {name!r}; expected"
                " parameters by name."
            )
        if isinstance(value, torch.Tensor) and (value.is_complex() or value.is_sparse):
            kind = "complex" if value.is_complex() else "sparse"
            raise UnreadableCheckpointError(
                f"The parameter {name} in {path} is {kind}; expected real numbers, all of them."
            )


def not_finite(parameters):
    """
    Args:
        parameters (dict[str, Tensor]):

    Returns:
        list[str]: the names of those with values that are infinite or not a number.
    """
    return [
        name
        for name, value in parameters.items()
        if value.is_floating_point() and not torch.isfinite(value).all()
    ]


def _check_sums(file):
    """Raises BadZipFile for a record whose checksum is wrong, which torch.load does not check."""
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        for record in archive.infolist():
            # torch.save can be told to leave the sums out.
            if record.CRC == 0:
                continue
            with archive.open(record) as f:
                while f.read(_CHUNK):
                    pass
