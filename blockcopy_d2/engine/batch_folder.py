"""
The folder of a batch: the videos to run, those that are done, and their settings.

    results/
        a.mp4.json              of videos/a.mp4
        north/b.mp4.json        of videos/north/b.mp4
        summary.json
        .batch/                 settings, a record per video, unfinished files

A file of results has its name only when it is whole, and the record of its video was written
before. So even if a run is killed, a video is done if it has both, and is run again otherwise.
"""

import contextlib
import fcntl
import glob
import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass

from blockcopy_d2.atomic import atomic_write
from blockcopy_d2.data import redact
from blockcopy_d2.data.addresses import is_address, name_of
from blockcopy_d2.data.image_folder import IMAGE_EXTENSIONS
from blockcopy_d2.results import FORMATS, VideoResults

__all__ = ["BatchFolder", "VideoTask", "find_videos"]

SUMMARY = "summary.json"
_OWN = ".batch"


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
        if task.results == SUMMARY or task.results.split(os.sep)[0] == _OWN:
            raise ValueError(
                f"The results of {redact(task.source)} would be {redact(task.results)}, which is"
                " a name for the batch itself. Give --root FOLDER, a folder further up."
            )
    return list(tasks.values())


class BatchFolder:
    """Keeps the results of a batch. Safe to be copied to other processes by pickling."""

    def __init__(self, path):
        """
        Args:
            path (str): path of the folder; made by :meth:`open`.
        """
        self.path = os.path.abspath(path)
        self._own = os.path.join(self.path, _OWN)
        self._partial = os.path.join(self._own, "partial")

    @contextlib.contextmanager
    def open(self, settings, *, overwrite=False):
        """
        Make the folder, or go on with it, for one program at a time.

        Args:
            settings (dict[str, Any]): JSON values by their keys: all that results depend on.
            overwrite (bool): remove all results of the folder, of these or other settings.

        Raises:
            NotADirectoryError: there is a file of that name.
            ValueError: it has results of other settings, or another program writes to it.
        """
        if os.path.lexists(self.path) and not os.path.isdir(self.path):
            raise NotADirectoryError(
                f"The output {redact(self.path)} is a file; expected the name of a folder."
            )
        try:
            os.makedirs(self._own, exist_ok=True)
        except OSError as error:
            raise type(error)(
                f"The output folder {redact(self.path)} cannot be made or written:"
                f" {error.strerror}."
            ) from error
        with self._lock():
            if overwrite:
                self._remove_results()
            self._check_settings(json.loads(json.dumps(settings)))
            # Unfinished files of killed programs.
            shutil.rmtree(self._partial, ignore_errors=True)
            os.makedirs(self._partial)
            yield
            shutil.rmtree(self._partial, ignore_errors=True)

    def pending(self, tasks):
        """
        Args:
            tasks (sequence[VideoTask]):

        Returns:
            list[VideoTask]: those that have no results, or whose videos have changed since.

        Raises:
            ValueError: a name is taken by results of another video, or by a file of other origin.
        """
        return [task for task in tasks if not self.is_done(task)]

    def is_done(self, task):
        """
        Args:
            task (VideoTask):

        Returns:
            bool: whether the video has its results.

        Raises:
            ValueError: see :meth:`pending`.
        """
        record, path = self.record(task), os.path.join(self.path, task.results)
        with contextlib.suppress(OSError):  # A name that is too long fails where the video runs.
            if record is None and os.path.lexists(path):
                raise ValueError(
                    f"{redact(path)} exists and is not of this batch. Choose another --output, or"
                    " move it away."
                )
        if record is None or record["error"] is not None or not self.has_results(task):
            return False
        if record["path"] != _absolute(task.source):
            raise ValueError(
                f"{redact(path)} has the results of {redact(record['path'])}, not of"
                f" {redact(task.source)}. Give --root FOLDER so that their names differ, or choose"
                " another --output."
            )
        try:
            return record["source"] == self.signature(task.source)
        except OSError:
            return False

    def has_results(self, task):
        """
        Args:
            task (VideoTask):

        Returns:
            bool: whether there is a file of its results, which is whole.
        """
        return os.path.isfile(os.path.join(self.path, task.results))

    def open_results(self, task, **options):
        """
        Args:
            task (VideoTask):
            options: those of :class:`VideoResults`.

        Returns:
            VideoResults: to be entered.
        """
        path = os.path.join(self.path, task.results)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.makedirs(self._partial, exist_ok=True)
        return VideoResults(path, folder=self._partial, **options)

    def forget(self, task):
        """
        Remove all files of a video, before it is run again.

        Args:
            task (VideoTask):
        """
        for path in (os.path.join(self.path, task.results), self._record_path(task)):
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)

    def record(self, task):
        """
        Args:
            task (VideoTask):

        Returns:
            dict or None: the record of the video.
        """
        try:
            with open(self._record_path(task), encoding="utf-8") as f:
                return json.load(f)
        except FileNotFoundError:
            return None

    def write_record(self, task, record):
        """
        Args:
            task (VideoTask):
            record (dict[str, Any]): JSON values, see :class:`VideoJob`.
        """
        path = self._record_path(task)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _write_json(path, {**record, "path": _absolute(task.source)})

    def write_summary(self, summary):
        """
        Args:
            summary (dict[str, Any]): JSON values.

        Returns:
            str: path of the file.
        """
        path = os.path.join(self.path, SUMMARY)
        _write_json(path, summary, indent=2)
        return path

    @staticmethod
    def signature(source):
        """
        Args:
            source (str): a file, a folder of frames or an address.

        Returns:
            list[int] or None: values that change with its content: size in bytes or number of
            files, and the date of the newest change in nanoseconds; None for an address.

        Raises:
            OSError: there is no such file.
        """
        if is_address(source):
            return None
        found = os.stat(source)
        if not os.path.isdir(source):
            return [found.st_size, found.st_mtime_ns]
        dates = [entry.stat().st_mtime_ns for entry in os.scandir(source)]
        return [len(dates), max(dates, default=0)]

    def _record_path(self, task):
        # A hash: names of videos may be as long as names can be.
        name = hashlib.sha256(os.fsencode(task.results)).hexdigest()
        return os.path.join(self._own, "records", name[:2], f"{name[2:34]}.json")

    @contextlib.contextmanager
    def _lock(self):
        with open(os.path.join(self._own, "lock"), "w") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"Another program writes its results to {redact(self.path)}. Wait for it, or"
                    " choose another --output."
                ) from None
            except OSError as error:
                logging.getLogger(__name__).warning(
                    "%s cannot be locked (%s): see that no other program writes to it.",
                    redact(self.path),
                    error.strerror,
                )
            yield

    def _check_settings(self, settings):
        path = os.path.join(self._own, "settings.json")
        if os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                before = json.load(f)
            differ = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
            if differ:
                listed = "; ".join(
                    f"{key} was {before.get(key)!r}, is {settings.get(key)!r}" for key in differ[:5]
                )
                more = f" and {len(differ) - 5} more" if len(differ) > 5 else ""
                raise ValueError(
                    f"{redact(self.path)} has results of other settings: {listed}{more}. Choose"
                    " another --output; or --overwrite removes them and runs all videos again."
                )
        _write_json(path, settings, indent=1)

    def _remove_results(self):
        records = os.path.join(self._own, "records")
        for folder, _, names in os.walk(records):
            for name in names:
                with open(os.path.join(folder, name), encoding="utf-8") as f:
                    results = json.load(f)["results"]
                with contextlib.suppress(FileNotFoundError):
                    os.remove(os.path.join(self.path, results))
        shutil.rmtree(records, ignore_errors=True)
        for path in (os.path.join(self._own, "settings.json"), os.path.join(self.path, SUMMARY)):
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)


def _matches(pattern, output):
    """Yields files that may be videos, and folders of images; no results, nor frames of a match."""
    output = os.path.realpath(output)
    endings = tuple(writer.suffix for writer in FORMATS.values())
    found = sorted(glob.iglob(pattern, recursive=True))
    folders = {os.path.normpath(path) for path in found if os.path.isdir(path)}
    for path in found:
        if os.path.isdir(path):
            if _has_images(path):
                yield path
        elif _is_image(path) and os.path.dirname(path) in folders:
            continue  # a frame of that folder
        elif not (path.endswith(endings) and _lies_in(path, output)):
            yield path


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


def _absolute(source):
    return redact(source if is_address(source) else os.path.abspath(source))


def _same_source(a, b):
    return a == b or (
        not is_address(a) and not is_address(b) and os.path.abspath(a) == os.path.abspath(b)
    )


def _write_json(path, value, **options):
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as f:
        json.dump(value, f, **options)
        f.write("\n")
