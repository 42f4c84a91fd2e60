"""Runs several methods side by side, frame by frame."""

import statistics
import time
from dataclasses import dataclass, field

import torch
from detectron2.engine import HookBase

from blockcopy_d2.engine import EvaluationLoop
from blockcopy_d2.engine.hooks import ScoringHook
from blockcopy_d2.evaluation.efficiency import EfficiencyMeter
from blockcopy_d2.evaluation.gain_share import GainShare
from blockcopy_d2.modeling import FrameResult

from .course import Course
from .stages import seconds_of_block_lists

__all__ = ["CourseHook", "Measurement", "MeasurementHook", "PartialScoringHook", "ProtocolLoop"]


class ProtocolLoop(EvaluationLoop):
    """
    Runs every method on a frame before the next one, so that other load on the machine affects all
    methods alike. ``runs`` has an entry per method, by its name.

    Attributes:
        waited (float): seconds of waiting for the frame to be read and mapped, unless workers of
            the loader had done so before; 0 for the first one, which starts them.
    """

    def __init__(self, model, data_loader, methods):
        """
        Args:
            model (BlockCopyVideoModel): the network that the methods share.
            data_loader (iterable): see :func:`blockcopy_d2.data.build_clip_loader`.
            methods (list[Method]):
        """
        super().__init__(model, data_loader)
        self.methods = methods
        self.waited = 0.0
        self.frames = 0

    def _warm_up(self):
        super()._warm_up()
        for method in self.methods:
            method.warm_up(self.model, self.inputs)

    def run_step(self):
        self.runs = {}
        start = time.perf_counter()
        self.inputs = self._next_frame()
        self.waited = time.perf_counter() - start
        if self.inputs is None:
            return
        if not self._warm:
            self._warm_up()
            self.waited = 0.0
        for method in self.methods:
            self.runs[method.name] = method.run(self.model, self.inputs)
        self.frames += 1


@dataclass
class Measurement:
    """
    Measurements of one method.

    Attributes:
        frames (int): frames, the first ones of clips included.
        meter (EfficiencyMeter): averages over the frames that are timed.
        milliseconds (list[float]): milliseconds of these frames.
        executed (list[float]): executed fraction of every frame but the first ones of clips.
        gain_share (GainShare): compared with dense outputs; empty if the frames have another size.
        course (Course): the same frame by frame.
        macs (dict[str, int]): multiply-accumulates of all frames, by stage.
        list_seconds (list[float]): seconds of listing the blocks, of those that were run and timed.
    """

    frames: int = 0
    meter: EfficiencyMeter = field(default_factory=EfficiencyMeter)
    milliseconds: list = field(default_factory=list)
    executed: list = field(default_factory=list)
    gain_share: GainShare = field(default_factory=GainShare)
    course: Course = field(default_factory=Course)
    macs: dict = field(default_factory=dict)
    list_seconds: list = field(default_factory=list)

    def add(self, run, frame, dense_gain, *, waited=None):
        """
        Args:
            run (ModelRun): run of one frame.
            frame (Tensor): float (1, 3, h, w), finite, at the policy resolution of dense outputs.
            dense_gain (Tensor or None): information gain between this frame's dense output and
                the last one's; None on a first frame.
            waited (float or None): seconds of loading the frame, which count to the method; None:
                they do not count.
        """
        seconds = run.seconds()
        if waited is not None:
            seconds = {"loading": waited, **seconds}
        self.frames += 1
        self.meter.add(seconds, run.macs)
        self.milliseconds.append(1000 * sum(seconds.values()))
        if run.result is None:
            return
        for stage, macs in run.result.macs_per_stage.items():
            self.macs[stage] = self.macs.get(stage, 0) + macs
        if isinstance(run.result, FrameResult):
            self.list_seconds.append(seconds_of_block_lists(run.result))
        if dense_gain is None:
            self.gain_share.start(frame)
        else:
            self.executed.append(run.result.grid.fraction)
            if dense_gain.shape == run.result.grid.active.shape:
                self.gain_share.update(frame, run.result.grid.active, dense_gain)
                if torch.isfinite(dense_gain).all():
                    self.course.add(run.result.grid.active, dense_gain)

    def forget_times(self):
        """Leave the frames so far out of all times."""
        self.meter = EfficiencyMeter()
        self.milliseconds.clear()
        self.list_seconds.clear()

    def summary(self):
        """
        Returns:
            dict: for JSON; None for values without frames.
        """
        if not self.milliseconds:
            return {}
        shares = self.gain_share.shares()
        return {
            "executed_fraction": statistics.fmean(self.executed) if self.executed else None,
            "gmacs": sum(self.macs.values()) / self.frames / 1e9 if self.macs else None,
            "gmacs_per_stage": {
                stage: macs / self.frames / 1e9 for stage, macs in self.macs.items()
            },
            "ms_median": statistics.median(self.milliseconds),
            "ms_mean": statistics.fmean(self.milliseconds),
            "ms_per_stage": {
                stage: 1000 * value for stage, value in self.meter.seconds_per_stage.items()
            },
            "ms_block_lists": (
                1000 * statistics.fmean(self.list_seconds) if self.list_seconds else None
            ),
            "gain_share": shares.pop("policy"),
            "gain_share_others": shares,
        }


class MeasurementHook(HookBase):
    """
    Measures every method, with the dense method's outputs as reference for the gain shares. If
    there are several clips, the first one is not timed: its frames load kernels and capture graphs,
    those of the learners' updates as well.
    """

    def __init__(self, measurements, *, include_loading=False):
        """
        Args:
            measurements (dict[str, Measurement]): to fill, by the name of the method.
            include_loading (bool): whether the time of a frame includes loading it.
        """
        self._measurements = measurements
        self._clips = 0
        self._include_loading = include_loading

    def after_step(self):
        runs = self.trainer.runs
        if not runs:
            return
        if self.trainer.inputs["frame_index"] == 0:
            self._clips += 1
            if self._clips == 2:
                for measurement in self._measurements.values():
                    measurement.forget_times()
        frame, gain = runs["dense"].result.frame.nan_to_num(), _dense_gain(self.trainer)
        waited = self.trainer.waited if self._include_loading else None
        for name, run in runs.items():
            self._measurements[name].add(run, frame, gain, waited=waited)


class CourseHook(HookBase):
    """Records the course of policies while they are warmed, beside the dense method."""

    def __init__(self, courses):
        """
        Args:
            courses (dict[str, Course]): to fill, by the name of the method.
        """
        self._courses = courses

    def after_step(self):
        if not self.trainer.runs:
            return
        gain = _dense_gain(self.trainer)
        if gain is not None and torch.isfinite(gain).all():
            for name, course in self._courses.items():
                course.add(self.trainer.runs[name].result.grid.active, gain)


def _dense_gain(loop):
    """Information gain between the dense outputs of this frame and the last; None if first."""
    dense = loop.runs["dense"].result
    return None if dense.previous_detections is None else loop.model.information_gain(dense)


class PartialScoringHook(ScoringHook):
    """Scores the methods even if the run ends early."""

    def after_train(self):
        self.score()
