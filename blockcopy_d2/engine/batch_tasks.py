"""
Finds the videos of a batch, and names their results: those of videos/north/b.mp4 are
north/b.mp4.json in the folder of the batch, see :class:`BatchFolder`.
"""

import glob
import logging
import os
from dataclasses import dataclass

from blockcopy_d2.data import redact
from blockcopy_d2.data.addresses import is_address, name_of
from blockcopy_d2.data.image_folder import IMAGE_EXTENSIONS
from blockcopy_d2.results import FORMATS

__all__ = ["OWN_FOLDER", "SUMMARY", "VideoTask", "find_videos"]

# Names that the folder of a batch has for itself.
SUMMARY = "summary.json"
OWN_FOLDER = ".batch"


@dataclass(frozen=True)
class VideoTask:
    """
    A video to run.

    Attributes:
        source (str): a file, a folder of frames or an address.
        results (str): path of its results in the folder of the batch.
    """

    source: str
    results: str


def find_videos(patterns, *, output, format="coco", root=None):
    """
    Args:
        patterns (sequence[str]): files, folders of frames, addresses, and patterns of them, such
            as ``videos/**/*.mp4``. Of matches, results in ``output`` are left out, and so are
            hidden files, folders without images, and the images of a folder that matches, too.
            ``**`` follows links to folders, but not in a circle.
        output (str): folder of the batch; it may hold the videos, too.
        format (str): format of the results, a key of :data:`FORMATS`.
        root (str or None): results are named by the paths of their videos from there. Default:
            the part of a pattern before its first ``*``, ``?`` or ``[``, and the folder of a file.

    Returns:
        list[VideoTask]: in order of the patterns; a video that is found twice is there once.

    Raises:
        FileNotFoundError: a pattern finds nothing, or a folder holds no image.
        ValueError: two videos would have one file of results, a video is not below ``root``, or
            the output lies in a folder of frames.
    """
    tasks = {}
    for pattern in patterns:
        found = [(pattern, os.path.dirname(os.path.abspath(pattern)))]
        if glob.has_magic(pattern) and not os.path.lexists(pattern) and not is_address(pattern):
            found = [(path, _fixed_part(pattern)) for path in _matches(pattern, output)]
        if not found or not (is_address(found[0][0]) or os.path.lexists(found[0][0])):
            raise FileNotFoundError(
                f"{redact(pattern)} finds no video; expected a file, a folder of frames, an"
                " address, or a pattern such as 'videos/**/*.mp4', in quotation marks."
            )
        for source, folder in found:
            name = _result_name(source, folder if root is None else root)
            task = VideoTask(source, name + FORMATS[format].suffix)
            other = tasks.setdefault(task.results, task)
            if not _same_source(other.source, source):
                raise ValueError(
                    f"{redact(other.source)} and {redact(source)} would both have their results in"
                    f" {redact(task.results)}. Give --root FOLDER, a folder above both: results"
                    " are then named by the paths from there."
                )
    for task in tasks.values():
        _check_place(task.source, output)
        _check_folders(task, tasks)
        if task.results == SUMMARY or task.results.split(os.sep)[0] == OWN_FOLDER:
            raise ValueError(
                f"The results of {redact(task.source)} would be {redact(task.results)}, which is"
                " a name for the batch itself. Give --root FOLDER, a folder further up."
            )
    return list(tasks.values())


def _matches(pattern, output):
    """Yields files that may be videos, and folders of images; no results, nor frames of a match."""
    output = os.path.realpath(output)
    endings = tuple(writer.suffix for writer in FORMATS.values())
    found = sorted(_glob(pattern))
    folders = {os.path.normpath(path) for path in found if os.path.isdir(path)}
    for path in found:
        if os.path.isdir(path):
            if _has_images(path):
                yield path
        elif _is_image(path) and os.path.dirname(path) in folders:
            continue  # a frame of that folder
        elif not (path.endswith(endings) and _lies_in(path, output)):
            yield path


def _glob(pattern):
    """set[str]: files and folders that match, where ** stands for any folders."""
    parts = pattern.split(os.sep)
    if "**" not in parts:
        return set(glob.glob(pattern))
    head, rest = parts[: parts.index("**")], parts[parts.index("**") + 1 :]
    top = os.sep.join(head) or (os.sep if head else "")
    found = set()
    for start in glob.glob(top) if glob.has_magic(top) else [top]:
        if not os.path.isdir(start or os.curdir):
            continue
        if start and not any(rest):
            found.add(start)
        for folder in _folders(start):
            found |= _glob(os.path.join(glob.escape(folder), *(rest if any(rest) else ["*"])))
    return found


def _folders(top, above=()):
    """Yields a folder and those below it, through links, too, but never one in itself."""
    real = os.path.realpath(top)
    if real in above:
        return
    yield top
    try:
        with os.scandir(top or os.curdir) as entries:
            names = sorted(x.name for x in entries if x.is_dir() and not x.name.startswith("."))
    except OSError as error:
        logging.getLogger(__name__).warning(
            "%s cannot be read, and is left out: %s", redact(top), error.strerror
        )
        return
    for name in names:
        yield from _folders(os.path.join(top, name), (*above, real))


def _check_folders(task, tasks):
    """Refuses results that would lie in a folder of the name of other results."""
    folder = task.results
    while folder := os.path.dirname(folder):
        if folder in tasks:
            raise ValueError(
                f"The results of {redact(tasks[folder].source)} would be the file {redact(folder)},"
                f" and those of {redact(task.source)} would lie in a folder of that name. Run them"
                " with an --output each."
            )


def _check_place(source, output):
    """Refuses a folder without images, and results among the frames of a video."""
    if is_address(source) or not os.path.isdir(source):
        return
    if not _has_images(source):
        raise FileNotFoundError(
            f"{redact(source)} holds no image, so it is not a video. For the videos in it give"
            f" '{redact(os.path.join(source, '*'))}', in quotation marks."
        )
    if _lies_in(output, source):
        raise ValueError(
            f"The output {redact(output)} lies in the folder of frames {redact(source)}. Choose"
            " another folder for the output."
        )


def _lies_in(path, folder):
    path, folder = os.path.realpath(path), os.path.realpath(folder)
    return os.path.commonpath([path, folder]) == folder


def _has_images(folder):
    with os.scandir(folder) as entries:
        return any(_is_image(entry.name) and not entry.name.startswith(".") for entry in entries)


def _is_image(path):
    return path.lower().endswith(IMAGE_EXTENSIONS)


def _fixed_part(pattern):
    """str: the folder that all matches of a pattern lie in."""
    folder = pattern
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    return os.path.abspath(folder)


def _result_name(source, root):
    if is_address(source):
        return name_of(source)
    path, root = os.path.abspath(source), os.path.abspath(root)
    if os.path.commonpath([path, root]) != root or path == root:
        raise ValueError(
            f"{redact(source)} does not lie below --root {redact(root)}, the folder from which"
            " results are named."
        )
    return os.path.relpath(path, root)


def _same_source(a, b):
    return a == b or (
        not is_address(a) and not is_address(b) and os.path.abspath(a) == os.path.abspath(b)
    )
