"""A file of results that is given a model's outputs, frame by frame."""

from .formats import ResultsFile
from .rows import RowMaker
from .tracking import Tracker

__all__ = ["VideoResults"]


class VideoResults:
    """
    Writes the detections of a video. A context manager, as :class:`ResultsFile`::

        with VideoResults("street.json", fps=25, metadata=metadata) as results:
            for frame, result in predictor.stream("street.mp4"):
                results.add(result.output, result.time)
    """

    def __init__(self, path, *, fps, metadata=None, threshold=0.0, track=False, **options):
        """
        Args:
            path (str or PathLike): its ending says the format, see :func:`format_of`.
            fps (float): frames per second of the video; tracks need it.
            metadata, threshold: see :class:`RowMaker`.
            track (bool): give objects ids, see :class:`Tracker`.
            options: those of :class:`ResultsFile`.
        """
        tracker = Tracker(fps) if track else None
        self._rows = RowMaker(metadata, threshold=threshold, tracker=tracker)
        self._file = ResultsFile(path, **options)

    @property
    def frames(self):
        """int: number of frames so far."""
        return self._file.frames

    @property
    def rows(self):
        """int: number of rows so far."""
        return self._file.rows

    def add(self, output, seconds=None, captured=None):
        """
        Write the next frame.

        Args:
            output (dict): output of the model for it.
            seconds (float or None): when it is shown, since the first frame.
            captured (float or None): seconds since 1970 at which a frame of a live source came.

        Raises:
            ResultsWriteError: the disk is full, for instance.
            ValueError: the output has no rows of results, see :class:`RowMaker`.
        """
        self._file.add(self._rows(output, self.frames, seconds, captured), seconds)

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *exception):
        return self._file.__exit__(*exception)
