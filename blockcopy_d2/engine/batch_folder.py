"""
The folder of a batch: the videos that are done, and their settings.

    results/
        a.mp4.json              of videos/a.mp4
        north/b.mp4.json        of videos/north/b.mp4
        summary.json
        .batch/                 settings, a record per video, unfinished files

A file of results has its name only when it is whole, and the record of its video was written
before. So even if a run is killed, a video is done if it has both, and is run again otherwise.
"""

import contextlib
import hashlib
import json
import os
import shutil

from blockcopy_d2.atomic import atomic_write
from blockcopy_d2.data import redact
from blockcopy_d2.data.addresses import is_address
from blockcopy_d2.results import ResultsWriteError, VideoResults

from .batch_tasks import OWN_FOLDER, SUMMARY
from .output_folder import lock

__all__ = ["BatchFolder"]


class BatchFolder:
    """Keeps the results of a batch. Safe to be copied to other processes by pickling."""

    def __init__(self, path):
        """
        Args:
            path (str): path of the folder; made by :meth:`open`.
        """
        self.path = os.path.abspath(path)
        self._own = os.path.join(self.path, OWN_FOLDER)
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
            ResultsWriteError: it cannot be written to.
            ValueError: it has results of other or unknown settings, or another program writes to
                it.
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
            dict or None: the record of the video. One that is damaged has an "error", so the video
            counts as failed and is run again.
        """
        path = self._record_path(task)
        try:
            record = _read_json(path)
        except FileNotFoundError:
            return None
        except ValueError as error:
            return {
                "video": redact(task.source),
                "results": task.results,
                "path": _absolute(task.source),
                "error": str(error),
            }
        return record

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
            lock(f, self.path, "--output")
            yield

    def _check_settings(self, settings):
        path = os.path.join(self._own, "settings.json")
        if os.path.exists(path):
            try:
                before = _read_json(path)
            except ValueError as error:
                raise ValueError(
                    f"{error} So it is unknown what the results of {redact(self.path)} depend on."
                    " Choose another --output; or --overwrite removes them and runs all videos"
                    " again."
                ) from None
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
                # A damaged record does not say which results are its own: they stay.
                with contextlib.suppress(FileNotFoundError, ValueError):
                    os.remove(
                        os.path.join(self.path, _read_json(os.path.join(folder, name))["results"])
                    )
        shutil.rmtree(records, ignore_errors=True)
        for path in (os.path.join(self._own, "settings.json"), os.path.join(self.path, SUMMARY)):
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)


def _absolute(source):
    return redact(source if is_address(source) else os.path.abspath(source))


def _read_json(path):
    """
    Raises:
        ValueError: the file holds no JSON object.
    """
    with open(path, encoding="utf-8") as f:
        try:
            value = json.load(f)
        except ValueError:  # of JSON, or of UTF-8
            value = None
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{redact(path)} is damaged.")
    return value


def _write_json(path, value, **options):
    """
    Raises:
        ResultsWriteError: names the file that cannot be written, because the disk is full, for
            instance.
    """
    try:
        with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as f:
            json.dump(value, f, **options)
            f.write("\n")
    except OSError as error:
        raise ResultsWriteError(
            f"Cannot write {redact(path)}: {error.strerror or error}"
        ) from error
