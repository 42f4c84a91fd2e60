"""Runs a model over the clips of a data set, as a loop of Detectron2's TrainerBase."""

import contextlib
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass

from detectron2.engine import TrainerBase
from detectron2.utils import comm

from blockcopy_d2.evaluation.gathering import wait_for_all
from blockcopy_d2.modeling import FrameResult, StreamPool, read_whole

from .stopping import RunStopped, StopSignals

__all__ = ["EvaluationLoop", "ModelRun"]


@dataclass
class ModelRun:
    """
    The output of one model for a frame, and its cost.

    Attributes:
        output (dict): in Detectron2's format.
        macs (int): multiply-accumulates executed.
        seconds (callable): returns seconds per stage, dict[str, float]; waits for the device.
        result (FrameResult or None): None if the model does not run in blocks.
    """

    output: dict
    macs: int
    seconds: Callable
    result: FrameResult | None = None

    @classmethod
    def of(cls, model, inputs, stream, **options):
        """
        Run the next frame of a stream, and count its executed operations.

        Args:
            model (BlockCopyVideoModel):
            inputs (dict): inputs of the frame.
            stream (VideoStream):
            options: see :meth:`BlockCopyVideoModel.step`.

        Returns:
            ModelRun:
        """
        result = model.step(inputs, stream, **options)
        read_whole(result)
        return cls(
            output=result.output,
            macs=sum(result.macs_per_stage.values()),
            seconds=lambda: result.seconds,
            result=result,
        )


class EvaluationLoop(TrainerBase):
    """
    Runs BlockCopy over the frames of a clip loader. One iteration runs one frame and teaches the
    policy. Hooks do everything else (scoring, comparing, writing).

    A frame that cannot be read ends its clip; the next clip is run as usual. Ctrl-C and SIGTERM end
    the run after the current frame. In any case all hooks finish their work, even if another hook
    fails.

    Attributes:
        model (BlockCopyVideoModel):
        learner (OnlineLearner or None): teaches the policy from every frame. Its time is part of
            the frame's. First frames, which the policy did not decide, and frames after a cut teach
            nothing.
        inputs (dict): inputs of the current frame, or None if it is skipped.
        runs (dict[str, ModelRun]): runs of the current frame, by model; "blockcopy" is this loop's,
            hooks may add others. Empty if the frame is skipped.
        failures (list[FrameReadError]): errors that ended a clip.
        interruption (str or None): the reason why the run ended early. Known when the hooks'
            ``after_train`` is called.
    """

    # Processes that learn together also stop together; they check every so many frames.
    _FRAMES_PER_AGREEMENT = 8

    def __init__(self, model, data_loader, *, learner=None):
        """
        Args:
            model (BlockCopyVideoModel):
            data_loader (iterable): see :func:`blockcopy_d2.data.build_clip_loader`.
            learner (OnlineLearner or None):
        """
        super().__init__()
        self.model = model
        self.learner = learner
        self.data_loader = data_loader
        self.streams = StreamPool(max_streams=1)
        self.inputs = None
        self.runs = {}
        self.failures = []
        self.interruption = None
        self._signals = StopSignals()
        self._failed_clip = None
        self._warm = False

    def train(self, start_iter=0, max_iter=None):
        """
        Args:
            start_iter, max_iter (int): frames of the loader to run; all of them by default. If
                processes learn together, those with fewer frames wait for the others.

        Raises:
            RunStopped: a signal ended the run.
        """
        with self._signals:
            self._frames = iter(self.data_loader)
            for _ in range(start_iter):
                next(self._frames, None)
            if max_iter is None:
                max_iter = len(self.data_loader)
                if self._together:
                    wait_for_all()
                    max_iter = max(comm.all_gather(max_iter))
            if start_iter >= max_iter:
                logging.getLogger(__name__).warning(
                    "All %d frames were run before: there is nothing left to run.", max_iter
                )
            try:
                super().train(start_iter, max_iter)
            except Exception as error:
                # The signal may also have ended others, such as a worker of the loader.
                if self._signals.received is None:
                    raise
                raise self._signals.received from error
        if self._signals.received is not None:
            raise self._signals.received

    def before_train(self):
        super().before_train()
        self._signals.deferring = True

    def after_step(self):
        super().after_step()
        # After the last frame the run ends anyway.
        if self.iter + 1 < self.max_iter and self._is_stopped():
            raise self._signals.received or RunStopped("another process was stopped", 1)

    def after_train(self):
        # Ends the loader's workers. Their death by the same signal would be raised at any place.
        self._frames = None
        self._signals.deferring = False
        self.storage.iter = self.iter
        if not self.finished:
            error = self._signals.received or sys.exc_info()[1]
            self.interruption = error.reason if isinstance(error, RunStopped) else _describe(error)
        with contextlib.ExitStack() as stack:
            for hook in reversed(self._hooks):
                stack.callback(hook.after_train)

    def _is_stopped(self):
        if not self._together:
            return self._signals.received is not None
        if (self.iter + 1) % self._FRAMES_PER_AGREEMENT:
            return False
        return any(comm.all_gather(self._signals.received is not None))

    @property
    def _together(self):
        return self.learner is not None and self.learner.sync

    @property
    def hurried(self):
        """bool: whether the run should end at once, without further work on its results."""
        return self._signals.insistent

    @property
    def finished(self):
        """bool: whether all frames were run; a process may have had none."""
        return self.iter >= self.max_iter

    def run_step(self):
        self.runs = {}
        self.inputs = self._next_frame()
        if self.inputs is None:
            if self.learner is not None:
                self.learner.sit_out()
            return
        if not self._warm:
            self._warm_up()
        stream = self.streams.get(self.inputs["video_id"], self.inputs["frame_index"])
        self.runs["blockcopy"] = ModelRun.of(self.model, self.inputs, stream, learner=self.learner)

    def _warm_up(self):
        """Tracing the network, and a library's first calls, do not count as the cost of a frame."""
        stream = self.streams.get(self.inputs["video_id"], 0)
        for _ in range(2):
            self.model.step(self.inputs, stream)
        stream.reset()
        self._warm = True

    def _next_frame(self):
        inputs = next(self._frames, [None])[0]
        if inputs is None:
            return None
        if inputs["video_id"] == self._failed_clip:
            return None
        if "error" in inputs:
            self._failed_clip = inputs["video_id"]
            self.failures.append(inputs["error"])
            logging.getLogger(__name__).error(
                "%s The rest of the clip is skipped.", inputs["error"]
            )
            return None
        return inputs


def _describe(error):
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
