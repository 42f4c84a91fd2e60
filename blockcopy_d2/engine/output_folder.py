"""The output folder of a program: it can be written, and one program at a time writes to it."""

import fcntl
import itertools
import logging
import os

from blockcopy_d2.data import redact

__all__ = ["claim_folder", "lock", "make_folder", "set_aside"]

# Lock files that this process holds, by their paths. Closing one, as exiting does, releases it.
_held = {}


def make_folder(path):
    """
    Make an output folder if it is missing.

    Args:
        path (str): a local path.

    Raises:
        NotADirectoryError: it, or a part of its path, is a file.
        OSError: it cannot be made, or no file can be made in it.
    """
    part = os.path.abspath(path)
    while not os.path.lexists(part):
        part = os.path.dirname(part)
    if not os.path.isdir(part):
        raise NotADirectoryError(
            f"The output folder {path} cannot be made: {part} is a file. Choose another name."
        )
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise type(error)(
            f"The output folder {path} cannot be made: {error.strerror}. Choose another one."
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(
            f"The output folder {path} cannot be written to: it is write-protected. Choose another"
            " one."
        )


def claim_folder(path):
    """
    Keep other programs that claim this folder out of it until this process ends. A process may
    claim its own again.

    Args:
        path (str): a folder, see :func:`make_folder`.

    Raises:
        ValueError: another program writes to it.
    """
    file = os.path.join(os.path.realpath(path), ".lock")
    if file in _held:
        return
    opened = open(file, "w")
    try:
        lock(opened, path, "output folder")
    except ValueError:
        opened.close()
        raise
    _held[file] = opened


def lock(file, path, choice):
    """
    Args:
        file (file): open for writing; locked until it is closed.
        path (str): the folder that it stands for, for messages.
        choice (str): says how to choose another folder, for messages.

    Raises:
        ValueError: another program has locked it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"Another program writes its results to {redact(path)}. Wait for it, or choose another"
            f" {choice}."
        ) from None
    except OSError as error:
        logging.getLogger(__name__).warning(
            "%s cannot be locked (%s): see that no other program writes to it.",
            redact(path),
            error.strerror,
        )


def set_aside(path):
    """
    Rename the file of an earlier run: metrics.json becomes metrics.1.json, metrics.2.json, and so
    on.

    Args:
        path (str): path of the file; nothing happens if it is missing.
    """
    if not os.path.exists(path):
        return
    stem, ending = os.path.splitext(path)
    for number in itertools.count(1):
        earlier = f"{stem}.{number}{ending}"
        if not os.path.exists(earlier):
            os.rename(path, earlier)
            return
