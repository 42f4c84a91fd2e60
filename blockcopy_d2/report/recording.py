"""
Records a video in one pass, through the dense model and through BlockCopy at several targets.

All of them run on a frame before the next one is read, so that other load on the machine affects
all alike. Only numbers are kept of a frame.

Shape shorthand: GH, GW: rows and columns of the block grid.
"""

import contextlib
import copy
import dataclasses
import itertools
import logging
import math
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

from blockcopy_d2.data import FrameReadError, read_ahead
from blockcopy_d2.engine import VideoPredictor
from blockcopy_d2.modeling import BlockCopyVideoModel, read_whole
from blockcopy_d2.policy import MovedDifference

from .agreement import build_measure
from .macs import StageMacs

__all__ = ["Recording", "Run", "mean", "record_video"]

# Names on the page for the stages of FrameResult.seconds.
STAGES = {
    "input": ("preprocess",),
    "motion": ("motion", "move_caches"),
    "policy": ("policy",),
    "network": ("network",),
    "heads": ("heads",),
    "learning": ("observe", "information_gain", "policy_update"),
}


@dataclass(eq=False)
class Run:
    """
    Frames of BlockCopy at one target.

    Attributes:
        target (float or None): tau; None for a policy that follows none.
        executed (list[float]): share of the blocks.
        seconds (list[float]): seconds of the whole call: resizing, network, learning.
        stages (dict[str, list[float]]): seconds by stage; "input" includes resizing.
        macs (dict[str, list[int]]): multiply-accumulates by stage.
        agreement (list[float]): agreement with the dense output, in percent; NaN if there is
            nothing to find. Recorded only for the run at the config's own target.
        age (list[tuple[float, float]]): median and maximum over the blocks, in frames.
        cuts (list[int]): frames that follow a scene cut.
        scores (dict[str, float]): agreement over all frames but the first, in percent.
        grids (list[ndarray]): bool (GH, GW), the executed blocks.
    """

    target: float | None
    executed: list = field(default_factory=list)
    seconds: list = field(default_factory=list)
    stages: dict = field(default_factory=lambda: {name: [] for name in STAGES})
    macs: dict = field(default_factory=dict)
    agreement: list = field(default_factory=list)
    age: list = field(default_factory=list)
    cuts: list = field(default_factory=list)
    scores: dict = field(default_factory=dict)
    grids: list = field(default_factory=list)

    @property
    def block_share(self):
        """
        float (GH, GW): share of the frames that executed each block, over all frames but the first.
        """
        return np.mean(self.grids[1:] or self.grids, axis=0)


@dataclass(eq=False)
class Recording:
    """
    Measurements on a video. The first frame executes all blocks with any policy, and is left out of
    every mean.

    Attributes:
        frames (int):
        dense_seconds (list[float]): seconds of the dense model, for every frame.
        dense_macs (dict[str, list[int]]): by stage.
        runs (list[Run]): by target; ``main`` is the run at the config's own.
        main (Run):
        difference (Run or None): run of :class:`MovedDifference`, which looks at pixels alone, at
            the target of ``main``; None where nothing is compared.
        metrics (tuple[str, ...]): keys of ``Run.scores``; the first is that of ``Run.agreement``.
        metrics_description (str): their description.
        block_size (int): in pixels of the network's input.
        scale (float): pixels of the network's input per pixel of a frame.
        last_frame (ndarray): uint8, BGR.
        failure (str or None): error that ended the video.
    """

    runs: list
    main: Run
    block_size: int
    difference: Run | None = None
    frames: int = 0
    dense_seconds: list = field(default_factory=list)
    dense_macs: dict = field(default_factory=dict)
    metrics: tuple = ()
    metrics_description: str = ""
    scale: float = 1.0
    last_frame: np.ndarray | None = None
    failure: str | None = None

    @property
    def dense_milliseconds(self):
        return 1000 * mean(self.dense_seconds)

    @property
    def milliseconds(self):
        return 1000 * mean(self.main.seconds)

    @property
    def speed_up(self):
        return self.dense_milliseconds / self.milliseconds

    @property
    def executed(self):
        return mean(self.main.executed)


def mean(values):
    """float: mean over all frames but the first; if there is no other, the first."""
    values = [value for value in values[1:] or values if not math.isnan(value)]
    return math.fsum(values) / len(values) if values else math.nan


def record_video(predictor, video, *, targets=(), max_frames=None, score_threshold=0.5, draw=None):
    """
    Args:
        predictor (VideoPredictor): predictor of the main run, at its own target. It learns on the
            way.
        video (VideoFrames):
        targets (sequence[float]): tau of further runs, each a stream of its own in memory with its
            own copy of the policy. Ignored, with a warning, for a policy that follows no target.
            With any, a policy that learns is compared with plain differences, too.
        max_frames (int or None): number of frames to stop after.
        score_threshold (float): see :class:`InstanceMeasure`.
        draw (callable or None): called for every frame with the image, the dense output, its
            seconds, the FrameResult of the main run, its seconds, the scale, and the seconds from
            the first frame to when it is shown.

    Returns:
        Recording: frames up to the end of the video, an error or an interrupt.

    Raises:
        ValueError: no frame could be run, or the outputs cannot be compared.
    """
    recorder = _Recorder(predictor, targets, score_threshold)
    known = [n for n in (video.num_frames, max_frames) if n]
    # The limit is the thread's, too: it must not wait for unwanted frames. For a live source it
    # does not know which ones are taken.
    frames = video.read(vectors=predictor.reads_vectors)
    frames = itertools.islice(frames, None if video.live else max_frames)
    with (
        contextlib.closing(read_ahead(frames, latest=video.live)) as decoded,
        tqdm(
            itertools.islice(decoded, max_frames),
            total=min(known, default=None),
            unit="frame",
            desc="recording",
        ) as progress,
    ):
        try:
            dropped = 0
            for image, seconds, vectors in progress:
                # Vectors lead to the frame before, which must not have been dropped.
                vectors = vectors if dropped == decoded.dropped else None
                dropped = decoded.dropped
                shown = recorder.step(image, vectors)
                if draw:
                    draw(image, *shown, seconds)
        except KeyboardInterrupt:
            progress.write("Interrupted: the report has the frames so far.")
        except FrameReadError as error:
            recorder.recording.failure = str(error)
    return recorder.finish()


class _Recorder:
    def __init__(self, first, targets, score_threshold):
        self._model, self._mapper = first.model, first.mapper
        self._predictors = [first]
        own = first.target
        self._score_threshold = score_threshold
        self._macs = StageMacs(first.model)
        main = Run(own)
        runs = [main]
        others = sorted({float(target) for target in targets} - {own})
        if own is None and others:
            logging.getLogger(__name__).warning(
                "%s follows no target: there is nothing to sweep.",
                type(first.model.policy).__name__,
            )
            others = []
        for target in others:
            self._predictors.append(_at_target(first, target))
            runs.append(Run(target))
        self.recording = Recording(runs=runs, main=main, block_size=self._model.block_size)
        self._runs = list(runs)
        if others and first.model.policy.learns:
            self.recording.difference = Run(own)
            self._predictors.append(_beside(first, MovedDifference(target=own)))
            self._runs.append(self.recording.difference)
        self._measures = None

    @torch.no_grad()
    def step(self, image, vectors=None):
        recording = self.recording
        if self._measures is None:
            self._warm_up(image)
        with self._macs.count_dense() as counters:
            start = _now(self._model.device)
            dense = self._model([self._mapper(image)])[0]
            seconds = _now(self._model.device) - start
        recording.dense_seconds.append(seconds)
        for name, counter in counters.items():
            recording.dense_macs.setdefault(name, []).append(counter.macs)
        shown = None
        for run, predictor, measure in zip(self._runs, self._predictors, self._measures):
            result = self._run(run, predictor, image, vectors)
            if recording.frames:
                measure.add(dense, result)
            if run is recording.main:
                run.agreement.append(measure.frame_score(dense, result))
                shown = (dense, seconds, result, run.seconds[-1], self._mapper.scale)
        recording.scale, recording.last_frame = self._mapper.scale, image
        recording.frames += 1
        return shown

    def _run(self, run, predictor, image, vectors):
        start = _now(self._model.device)
        result = predictor(image, vectors)
        read_whole(result)  # Part of a frame.
        seconds = _now(self._model.device) - start
        stages = result.seconds
        resizing = max(seconds - sum(stages.values()), 0.0)
        for name, parts in STAGES.items():
            run.stages[name].append(sum(stages.get(part, 0.0) for part in parts))
        run.stages["input"][-1] += resizing
        run.seconds.append(seconds)
        run.executed.append(result.executed)
        for name, macs in self._macs.executed(result).items():
            run.macs.setdefault(name, []).append(macs)
        age = result.age.float()
        run.age.append((age.median().item(), age.max().item()))
        if bool(result.cut):
            run.cuts.append(self.recording.frames)
        run.grids.append(result.grid.active[0].cpu().numpy())
        return result

    def _warm_up(self, image):
        """The first call of a network traces it, and fills the caches of libraries."""
        inputs = self._mapper(image)
        self._macs.measure_layers(inputs)
        output = self._model([inputs])[0]
        stream = self._model.init_state()
        grid = self._model.step(inputs, stream).grid
        self._model.step(inputs, stream, grid=grid)
        self._measures = [build_measure(output, self._score_threshold) for _ in self._predictors]

    def finish(self):
        recording = self.recording
        if not recording.frames:
            raise ValueError(f"No frame could be run: {recording.failure or 'the video is empty'}.")
        # An interrupt may have come in the middle of a frame.
        for values in _lists(recording):
            del values[recording.frames :]
        recording.metrics = self._measures[0].names
        recording.metrics_description = self._measures[0].description
        for run, measure in zip(self._runs, self._measures):
            run.scores = measure.scores()
        recording.runs.sort(key=lambda run: run.target or 0.0)
        return recording


def _lists(recording):
    """Every list of values by frame."""
    yield recording.dense_seconds
    yield from recording.dense_macs.values()
    for run in filter(None, [*recording.runs, recording.difference]):
        yield from (run.executed, run.seconds, run.agreement, run.age, run.grids)
        yield from (*run.stages.values(), *run.macs.values())


def _at_target(predictor, target):
    """VideoPredictor: a predictor with the same network and its own copy of the policy."""
    policy, learner = copy.deepcopy((predictor.model.policy, predictor.model.learner))
    other = _beside(predictor, policy, learner)
    other.set_target(target)
    return other


def _beside(predictor, policy, learner=None):
    """VideoPredictor: a predictor with the same network and another policy."""
    model = predictor.model
    other = BlockCopyVideoModel(
        base=model.base,
        policy=policy,
        task=model.task,
        max_streams=1,
        motion=model.motion,
        **dataclasses.asdict(model.options),
    )
    other.learner = learner
    return VideoPredictor(model=other, mapper=predictor.mapper)


def _now(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
