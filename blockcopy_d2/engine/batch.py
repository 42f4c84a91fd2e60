"""
Turns whole videos into files of results: the job that a batch does for each of its videos.

A batch is three parts, which ``python -m blockcopy_d2.batch`` puts together, and which serve any
other scheduler as well::

    tasks = find_videos(["videos/**/*.mp4"], output="results")   # all videos
    folder = BatchFolder("results")                              # what is done, and by which config
    with folder.open({"TARGET": 0.3}):                           # refuses results of other settings
        job = VideoJob(VideoPredictor(cfg), folder)              # in every process that runs videos
        for task in folder.pending(tasks):
            record = job(task)                                   # a dict; names what went wrong

Tasks and records can be pickled and are small. Processes that run videos share nothing but the
folder; no two of them may have the same task at the same time.
"""

import contextlib
import copy
import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from detectron2.data import Metadata

from blockcopy_d2.data import FrameReadError, VideoFrames, redact, redact_words
from blockcopy_d2.policy import Policy
from blockcopy_d2.results import ResultsWriteError

from .batch_folder import BatchFolder
from .batch_tasks import VideoTask
from .predictor import VideoPredictor

__all__ = ["PolicyStart", "VideoJob"]


class VideoJob:
    """
    Runs whole videos through one model, each to a file of results in the folder of a batch. A
    video that is broken ends in a record that says so; other videos go on.
    """

    def __init__(
        self,
        predictor: VideoPredictor,
        folder: BatchFolder,
        *,
        metadata: Metadata | None = None,
        threshold: float = 0.0,
        track: bool = False,
        max_frames: int | None = None,
        keep_learning: bool = False,
        decoder: str = "pyav",
    ) -> None:
        """
        Args:
            predictor (VideoPredictor): for this job alone.
            folder (BatchFolder): where results and records go.
            metadata (Metadata or None): that of the data set which the model was trained on; it has
                the ids of classes.
            threshold (float): minimum score of a row.
            track (bool): give objects ids, see :class:`Tracker`.
            max_frames (int or None): stop after that many frames of a video.
            keep_learning (bool): the policy goes on learning from video to video. Default: each
                video starts with the policy that the predictor has now, so that its results do not
                depend on earlier videos, on the number of processes, or on a restart.
            decoder (str): see :meth:`VideoPredictor.stream`.
        """
        self._predictor, self._folder = predictor, folder
        self._options = {"metadata": metadata, "threshold": threshold, "track": track}
        self._max_frames, self._decoder = max_frames, decoder
        self._start = None if keep_learning else PolicyStart(predictor)

    @property
    def policy(self) -> Policy:
        """Policy: the one that chooses the blocks."""
        return self._predictor.model.policy

    def __call__(
        self, task: VideoTask, progress: Callable[[int], None] | None = None
    ) -> dict[str, Any]:
        """
        Run one video.

        Args:
            task (VideoTask): which, and the name of its results.
            progress (callable or None): called after every frame with the number of frames so far.

        Returns:
            dict[str, Any]: the record of the video, see :meth:`BatchFolder.record`: "video",
            "results", "source" (its size and date), "frames", "rows", "seconds" (of running it),
            "executed" (share of the blocks, of all frames but the first; None where there is no
            other), "incomplete" (None, or how many of the announced frames there were), and "error"
            (None, or why there are no results).

        Raises:
            ResultsWriteError: results cannot be written, which goes for all other videos, too.
        """
        record = {"video": redact(task.source), "results": task.results, "error": None}
        start = time.perf_counter()
        try:
            record["source"] = self._folder.signature(task.source)
            self._folder.forget(task)
            self._run(task, record, start, progress)
        except ResultsWriteError:
            raise
        except Exception as error:  # of any type: a broken video must not end the batch
            record["error"] = redact_words(error) or type(error).__name__
            if not isinstance(error, (FrameReadError, OSError, ValueError)):
                logging.getLogger(__name__).exception("%s cannot be run:", record["video"])
                record["error"] = f"{type(error).__name__}: {record['error']}"
            self._folder.write_record(task, record)
        return record

    def _run(self, task, record, start, progress):
        device = self._predictor.model.device
        video = VideoFrames(task.source, decoder=self._decoder, device=device)
        if video.live and self._max_frames is None:
            raise ValueError("It is live and has no end: give --max-frames.")
        if self._start is not None:
            self._start.restore()

        def finish():
            record.update(
                frames=file.frames,
                rows=file.rows,
                seconds=round(time.perf_counter() - start, 3),
                executed=round(executed / (file.frames - 1), 4) if file.frames > 1 else None,
                incomplete=_incomplete(file.frames, video.num_frames, self._max_frames),
            )
            # The record comes before the results have their name: the origin of results without
            # one is unknown.
            self._folder.write_record(task, record)

        file = self._folder.open_results(task, before_naming=finish, fps=video.fps, **self._options)
        executed = 0.0
        with file, contextlib.closing(self._predictor.stream(video)) as stream:
            for _, result in stream:
                executed += 0.0 if result.is_first else result.executed
                captured = result.clock.captured if video.live else None
                file.add(result.output, result.time, captured)
                if progress is not None:
                    progress(file.frames)
                if file.frames == self._max_frames:
                    break


class PolicyStart:
    """The present policy of a predictor, and the state of its learner."""

    def __init__(self, predictor: VideoPredictor) -> None:
        """
        Args:
            predictor (VideoPredictor):
        """
        self._policy, self._learner = predictor.model.policy, predictor.learner
        self._device = predictor.model.device
        self._weights = copy.deepcopy(self._policy.state_dict())
        self._learned = None if self._learner is None else copy.deepcopy(self._learner.state_dict())

    @torch.inference_mode(False)
    def restore(self) -> None:
        """Restore policy and learner in place. The policy draws from its seed again."""
        with torch.no_grad():
            self._policy.load_state_dict(self._weights)
        if self._learner is not None:
            self._learner.load_state_dict(self._learned)
        for generator in self._policy.generators(self._device):
            generator.manual_seed(generator.initial_seed())


def _incomplete(frames, announced, most):
    wanted = announced if most is None or announced is None else min(announced, most)
    if wanted is None or frames >= wanted:
        return None
    return f"{frames} of {wanted} frames"
