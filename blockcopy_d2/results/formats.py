"""Files of results, one per video. The ending of a name says its format."""

import contextlib
import os

from blockcopy_d2.atomic import atomic_write
from blockcopy_d2.data import redact

from .coco import CocoWriter
from .parquet import ParquetWriter
from .ytvis import YtvisWriter

__all__ = ["FORMATS", "ResultsFile", "ResultsWriteError", "check_results_path", "format_of"]

FORMATS = {"coco": CocoWriter, "ytvis": YtvisWriter, "parquet": ParquetWriter}


class ResultsWriteError(OSError):
    """Results that cannot be written, because the disk is full, for instance."""


def format_of(path):
    """
    Args:
        path (str or PathLike): path of a file of results.

    Returns:
        str: its format, a key of :data:`FORMATS`.

    Raises:
        ValueError: its name has none of their endings.
    """
    name = os.fsdecode(path).lower()
    fits = [key for key, writer in FORMATS.items() if name.endswith(writer.suffix)]
    if not fits:
        endings = ", ".join(f"{writer.suffix} ({key})" for key, writer in FORMATS.items())
        raise ValueError(
            f"The name of the results {redact(path)} has no known ending; expected one of"
            f" {endings}."
        )
    return max(fits, key=lambda key: len(FORMATS[key].suffix))


def check_results_path(path, *, tracks):
    """
    Refuse paths that :class:`ResultsFile` could not write, before anything is run.

    Args:
        path (str or PathLike): path of a file of results.
        tracks (bool): whether rows will have ids of tracks.

    Raises:
        ImportError: the format needs a package that is missing; names the extra that brings it.
        ValueError: the name has no known ending, or one that needs ids of tracks.
    """
    FORMATS[format_of(path)].check(tracks=tracks)


class ResultsFile:
    """
    Writes the rows of a video to a file as they come. A context manager: leaving it finishes the
    file, which gets its name then. Leaving it by any exception, an interrupt included, leaves what
    was there before.
    """

    def __init__(self, path, *, folder=None, before_naming=None):
        """
        Args:
            path (str or PathLike): its ending says the format, see :func:`format_of`.
            folder (str or PathLike or None): folder of the unfinished file; default: its own.
            before_naming (callable or None): called when the file is finished, just before it gets
                its name.
        """
        self.path = os.fsdecode(path)
        self.rows = self.frames = 0
        self._folder, self._before_naming = folder, before_naming
        self._writer_class = FORMATS[format_of(path)]

    def __enter__(self):
        with contextlib.ExitStack() as stack, self._named_errors():
            temporary = stack.enter_context(atomic_write(self.path, folder=self._folder))
            self._writer = self._writer_class(temporary)
            stack.callback(self._abandon)
            self._files = stack.pop_all()
        return self

    def add(self, rows, seconds=None):
        """
        Write the next frame.

        Args:
            rows (list[dict]): rows of the frame, see :class:`RowMaker`.
            seconds (float or None): when it is shown, since the first frame.

        Raises:
            ResultsWriteError: the disk is full, for instance.
        """
        with self._named_errors():
            self._writer.add(rows, seconds)
        self.rows += len(rows)
        self.frames += 1

    def __exit__(self, kind, error, traceback):
        if kind is not None:
            return self._files.__exit__(kind, error, traceback)
        with self._named_errors(), self._files:
            self._writer.close()
            if self._before_naming is not None:
                self._before_naming()

    def _abandon(self):
        # A full disk has been reported by then.
        with contextlib.suppress(OSError):
            self._writer.abandon()

    @contextlib.contextmanager
    def _named_errors(self):
        try:
            yield
        except OSError as error:
            raise ResultsWriteError(
                f"Cannot write the results {redact(self.path)}: {error.strerror or error}"
            ) from error
