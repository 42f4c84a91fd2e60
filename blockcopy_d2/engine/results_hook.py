"""Results of an evaluation as data, a file per clip."""

import os
import sys

from detectron2.engine import HookBase

from blockcopy_d2.results import FORMATS, VideoResults, check_tracking

__all__ = ["ResultsHook"]


class ResultsHook(HookBase):
    """
    Writes BlockCopy's detections in the frames of the :class:`EvaluationLoop`, see
    :class:`VideoResults`, to ``<folder>/<video_id>`` with the ending of the format. Rows have no
    times: a data set has none. A clip that breaks, or that the end of the run cuts short,
    leaves no file.
    """

    def __init__(self, folder, *, format="coco", metadata=None, track=False, fps=17.0):
        """
        Args:
            folder (str): where files go; made if missing.
            format (str): a key of ``FORMATS``.
            metadata (Metadata or None): see :class:`Categories`.
            track (bool): give objects ids.
            fps (float): frames per second of the clips, for the tracks.

        Raises:
            ImportError: the format or the tracks need a package that is missing.
            ValueError: the format needs tracks.
        """
        FORMATS[format].check(tracks=track)
        if track:
            check_tracking()
        self._folder, self._suffix = folder, FORMATS[format].suffix
        self._options = {"metadata": metadata, "track": track, "fps": fps}
        self._results, self._failures = None, 0

    def before_train(self):
        os.makedirs(self._folder, exist_ok=True)

    def after_step(self):
        run = self.trainer.runs.get("blockcopy")
        if run is None:
            return
        if run.result.is_first:
            self._end()
            name = str(self.trainer.inputs["video_id"]).replace(os.sep, "_") + self._suffix
            results = VideoResults(os.path.join(self._folder, name), **self._options)
            self._results = results.__enter__()
        self._results.add(run.output)

    def after_train(self):
        # Also called while an exception is raised, possibly by a hook before this one.
        self._end(complete=self.trainer.finished and sys.exc_info()[0] is None)

    def _end(self, complete=True):
        """Finishes the file of the last clip, or leaves none."""
        results, self._results = self._results, None
        failures, self._failures = self._failures, len(self.trainer.failures)
        if results is None:
            return
        if complete and failures == len(self.trainer.failures):
            results.__exit__(None, None, None)
        else:
            results.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
