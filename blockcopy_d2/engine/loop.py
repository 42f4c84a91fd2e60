"""Running a model over the clips of a data set, as a loop of Detectron2's TrainerBase."""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

from detectron2.engine import TrainerBase
from detectron2.utils import comm

from blockcopy_d2.evaluation.efficiency import MacCounter
from blockcopy_d2.modeling import FrameResult, StreamPool

__all__ = ["EvaluationLoop", "ModelRun"]


@dataclass
class ModelRun:
    """
    What one model made of a frame, and at what cost.

    Attributes:
        output (dict): in Detectron2's format.
        macs (int): multiply-accumulates executed.
        seconds (callable): gives seconds per stage, dict[str, float]; waits for the device.
        result (FrameResult or None): where the model runs in blocks.
    """

    output: dict
    macs: int
    seconds: Callable
    result: FrameResult | None = None

    @classmethod
    def of(cls, model, inputs, stream, **options):
        """
        Run the next frame of a stream, and count what it executes.

        Args:
            model (BlockCopyVideoModel):
            inputs (dict): of the frame.
            stream (VideoStream):
            options: of :meth:`BlockCopyVideoModel.step`.

        Returns:
            ModelRun:
        """
        with contextlib.ExitStack() as stack:
            counter = None
            if not model.replays(stream):
                counter = stack.enter_context(MacCounter(model))
            result = model.step(inputs, stream, **options)
        others = sum((result.other_macs or {}).values()) if counter is None else counter.macs
        return cls(
            output=result.output,
            macs=result.macs + others,
            seconds=lambda: result.seconds,
            result=result,
        )


class EvaluationLoop(TrainerBase):
    """
    Runs BlockCopy over the frames of a clip loader: one iteration is one frame. Everything else
    (learning, scoring, comparing, writing) is done by hooks.

    A frame that cannot be read ends its clip; the next clip is run as usual.

    Attributes:
        model (BlockCopyVideoModel):
        learner (OnlineLearner or None): decides on which frames the policy keeps its graph.
        inputs (dict): of the current frame, or None if it is skipped.
        runs (dict[str, ModelRun]): of the current frame, by model; "blockcopy" is this loop's,
            hooks may add others. Empty if the frame is skipped.
        failures (list[FrameReadError]): that ended a clip.
    """

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
        self._failed_clip = None
        self._warm = False

    def train(self, start_iter=0, max_iter=None):
        """
        Args:
            start_iter, max_iter (int): frames of the loader to run; all of them by default. Where
                processes learn together, those with fewer frames wait for the others.
        """
        self._frames = iter(self.data_loader)
        for _ in range(start_iter):
            next(self._frames)
        if max_iter is None:
            max_iter = len(self.data_loader)
            if self.learner is not None and self.learner.sync:
                max_iter = max(comm.all_gather(max_iter))
        super().train(start_iter, max_iter)

    @property
    def finished(self):
        """bool: whether all frames were run; a process may have had none."""
        return self.iter >= self.max_iter

    def run_step(self):
        self.runs = {}
        self.inputs = self._next_frame()
        if self.inputs is None:
            return
        if not self._warm:
            self._warm_up()
        stream = self.streams.get(self.inputs["video_id"], self.inputs["frame_index"])
        learning = self.learner is not None and self.learner.wants_graph()
        self.runs["blockcopy"] = ModelRun.of(self.model, self.inputs, stream, learning=learning)

    def _warm_up(self):
        """Capturing the network, and a library's first calls, are no cost of a frame."""
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
