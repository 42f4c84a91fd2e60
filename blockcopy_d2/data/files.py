"""The files of a data set that has to be there, or one error that says what is missing."""

import glob
import os

__all__ = ["find_files", "require_folder"]


def find_files(folder, suffix, root, origin):
    """
    Args:
        folder (str): of one folder per city.
        suffix (str): that the names end in.
        root (str): of the data set.
        origin (str): a sentence that says where it comes from.

    Returns:
        list[str]: sorted.

    Raises:
        FileNotFoundError: if there are none.
    """
    files = sorted(glob.glob(os.path.join(glob.escape(folder), "*", f"*{suffix}")))
    if not files:
        raise FileNotFoundError(_missing(f"Files {folder}/<city>/*{suffix} are", root, origin))
    return files


def require_folder(folder, root, origin):
    """
    Args:
        folder, root, origin (str): as of :func:`find_files`.

    Raises:
        FileNotFoundError: if the folder is missing.
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
