"""
Files that are either complete or unchanged: written beside their target, then renamed.

This module needs only the standard library, so that every part of the package may use it.
"""

import contextlib
import os
import secrets
import stat

__all__ = ["atomic_write"]


@contextlib.contextmanager
def atomic_write(path, *, folder=None):
    """
    Yields the name of a temporary file in the folder of ``path``, with the same suffix. Leaving the
    context renames it to ``path``. Leaving it by any exception, an interrupt included, removes it,
    and what is at ``path`` stays as it was. So does a killed process or a full disk::

        with atomic_write("summary.json") as temporary, open(temporary, "w") as f:
            json.dump(summary, f)

    A symbolic link is followed, and the permissions of an existing file are kept. A device or pipe
    has nothing to lose and cannot be replaced: its own name is yielded.

    Args:
        path (str or PathLike): path of the file to write. Its folder must exist.
        folder (str or PathLike or None): folder of the temporary file, on the same file system.
            Files of killed processes stay in it.

    Yields:
        str: absolute path of an empty file. If it is removed, nothing is renamed.

    Raises:
        FileNotFoundError: there is no such folder.
        IsADirectoryError: ``path`` is a folder.
        PermissionError: the folder, or a file that is there already, cannot be written.
    """
    path = os.fsdecode(path)
    found = _stat(path)
    if found is not None and not stat.S_ISREG(found.st_mode):
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(f"{path} is a folder; expected the name of a file.")
        yield path
        return
    target = os.path.realpath(path)
    if found is not None and not os.access(target, os.W_OK):
        raise PermissionError(f"{path} exists and is write-protected.")
    temporary = _create_temporary(path, target, folder)
    try:
        yield temporary
        if os.path.lexists(temporary):
            if found is not None:
                os.chmod(temporary, stat.S_IMODE(found.st_mode))
            _flush(temporary)
            os.replace(temporary, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def _stat(path):
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _create_temporary(path, target, folder):
    """str: name of a new, empty file with the suffix of ``target``, in ``folder`` or its own."""
    beside, name = os.path.split(target)
    folder = beside if folder is None else os.path.abspath(os.fsdecode(folder))
    stem, suffix = os.path.splitext(name)
    # A long name must not become too long.
    temporary = os.path.join(folder, f".{stem[:32]}.{secrets.token_hex(6)}{suffix}")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no folder {folder} to write {path} to.") from None
    except OSError as error:
        raise type(error)(f"{path} cannot be written: {error.strerror}.") from error
    return temporary


def _flush(path):
    """Some file systems report only here that the disk is full."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
