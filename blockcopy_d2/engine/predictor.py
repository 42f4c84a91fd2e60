"""Runs a model on videos of any length: Detectron2's ``DefaultPredictor`` for streams."""

import contextlib
import copy
import functools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from omegaconf import DictConfig
from PIL import Image

from blockcopy_d2.config import KEYS
from blockcopy_d2.config_key import flag, number, whole
from blockcopy_d2.data import (
    FrameFeed,
    FrameMapper,
    OwnFrames,
    as_picture,
    open_frames,
)
from blockcopy_d2.modeling import BlockCopyVideoModel, FrameResult, StreamBatch, read_whole
from blockcopy_d2.motion import FrameVectors

from .acceleration import accelerate, video_config
from .budget import FrameBudget
from .frame_inputs import FrameInputs
from .region import Region, VideoRegions
from .ticks import run_feeds

__all__ = ["FrameMapper", "VideoPredictor"]

# Uint8, (H, W, 3), BGR. A tensor must be on a GPU, as other objects with DLPack.
Picture = np.ndarray | Image.Image | torch.Tensor
# A mask (H, W), a polygon, or several.
RegionPart = np.ndarray | torch.Tensor | Sequence
# A file, a folder or an address, the number of a camera, or pictures.
Source = str | os.PathLike | int | Iterable[Picture]


class VideoPredictor:
    """
    Runs a model with BlockCopy on video, and teaches its policy on the way. Frames go through the
    test-time resizing of the config. Of each frame it keeps only the state that the next one needs.

    Results read like the outputs of ``DefaultPredictor``, with more attributes, see
    :class:`FrameResult`.

    Attributes:
        model (BlockCopyVideoModel):
        learner (OnlineLearner or None): None if the policy does not learn.

    Examples:
    ::
        predictor = VideoPredictor(cfg)  # any config of Detectron2
        for frame, outputs in predictor.stream("input.mp4"):
            instances = outputs["instances"]
    """

    def __new__(cls, *args: Any, **kwargs: Any):
        if args and not isinstance(args[0], CfgNode | DictConfig):
            raise TypeError(
                f"{cls.__name__} takes a config, not {type(args[0]).__name__}: get one by its name"
                " from detectron2.model_zoo.get_config, or give what"
                " blockcopy_d2.accelerate(model) returns as model=..."
            )
        return super().__new__(cls)

    @configurable
    def __init__(
        self,
        *,
        model: BlockCopyVideoModel,
        mapper: FrameMapper | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """
        Args:
            model (BlockCopyVideoModel): a model with its weights loaded, see :func:`accelerate`.
            mapper (FrameMapper or None): maps frames to the model's input. Default: frames as they
                are, in BGR.
            clock (callable): returns the time in seconds, for :meth:`set_budget`.

        Raises:
            TypeError: ``model`` has another class.
        """
        if not issubclass(type(model), BlockCopyVideoModel):
            raise TypeError(
                f"{type(model).__name__} does not run in blocks: give VideoPredictor a config, or"
                " what blockcopy_d2.accelerate(model) returns as model=..."
            )
        self.model = model
        self.learner = model.learner
        self._inputs = FrameInputs(model, FrameMapper() if mapper is None else mapper)
        self._clock = clock
        self._budget = None
        # Every policy with its learner: first the model's, then those of open streams.
        self._policies = [(model.policy, model.learner)]
        self._stream = model.init_state()
        # States of streams that have ended: their memory and graphs serve the next ones.
        self._unused = []
        self._regions = VideoRegions()

    def __getstate__(self) -> dict[str, Any]:
        # Videos in progress stay in this process.
        return {**vars(self), "_stream": self.model.init_state(), "_unused": []}

    @classmethod
    def from_config(cls, cfg: CfgNode | DictConfig) -> dict[str, Any]:
        """
        Args:
            cfg (CfgNode or DictConfig): any Detectron2 config. Its keys of BlockCopy apply, except
                for the switch, which is always on.

        Returns:
            dict[str, Any]: arguments of a predictor.
        """
        if isinstance(cfg, CfgNode):
            cfg = video_config(cfg)
        return {"model": accelerate(cfg), "mapper": FrameMapper(cfg)}

    @property
    def mapper(self) -> FrameMapper:
        """FrameMapper: maps frames to the model's input; may be set."""
        return self._inputs.mapper

    @mapper.setter
    def mapper(self, mapper: FrameMapper) -> None:
        self._inputs.mapper = mapper

    @property
    def scale(self) -> float:
        """float: pixels of the network's input per pixel of the last frame."""
        return self.mapper.scale

    def reset(self) -> None:
        """
        Start a new video for calls with single frames: its first frame executes all blocks. The
        policy keeps what it has learned.
        """
        self._stream.reset()

    @property
    def replays(self) -> bool:
        """Deprecated, see :meth:`BlockCopyVideoModel.replays`."""
        return self.model.replays(self._stream)

    @property
    def target(self) -> float | None:
        """float or None: tau; None if the policy follows no target."""
        policy, learner = self._policies[0]
        return getattr(policy if learner is None else learner, "target", None)

    def set_target(self, target: float) -> None:
        """
        Change the fraction of blocks to execute, from the next frame on.

        Args:
            target (float): tau, in [0, 1].

        Raises:
            ValueError: it is out of range, or the policy follows no target.
        """
        target = KEYS["MODEL.BLOCKCOPY.TARGET"].check("target", target)
        for policy, learner in self._policies:
            _follower(policy, learner).target = target

    def set_budget(self, milliseconds: float | None) -> None:
        """
        Hold the median time of a frame by moving the target, see :class:`FrameBudget`. The time
        is that of a call: resizing, network and learning, but no decoding.

        Args:
            milliseconds (float or None): above 0; None to stop, and leave the target where it is.

        Raises:
            ValueError: it is not positive, or the policy follows no target.
        """
        if milliseconds is not None:
            milliseconds = number(None, open_ends=True).check("milliseconds", milliseconds)
        for policy, learner in self._policies:
            _follower(policy, learner)
        self._budget = None if milliseconds is None else FrameBudget(milliseconds / 1000)

    def set_region(
        self,
        area: RegionPart | None = None,
        *,
        always: RegionPart | None = None,
        never: RegionPart | None = None,
        video: int | None = None,
    ) -> None:
        """
        Set where in the picture the network runs, from the next frame on. Parts are masks, bool
        (H, W), or polygons, lists of x and y of their corners, in pixels of the picture; several
        polygons are one part. Without any part the policy decides everywhere again.

        The target stays a share of all blocks. Those that always run count, also where they are
        more; the policy fills the rest with blocks of its choice. Where it may choose from fewer
        than the target has room for, less is executed. Frames that follow nothing (the first of a
        video, one after a cut) run whole, so that every block has features; of those that never
        run these stay, and so does what is found in them, moved with the picture if the model
        estimates motion.

        ::
            predictor.set_region([(0, 300), (1280, 300), (1280, 720), (0, 720)])  # nothing above
            predictor.set_region(always=[(600, 320), (700, 320), (700, 380), (600, 380)])
            predictor.set_region()

        Args:
            area (ndarray, Tensor or sequence or None): blocks that touch none of it never run.
            always (ndarray, Tensor or sequence or None): blocks that touch it run in every frame,
                within ``area`` or not.
            never (ndarray, Tensor or sequence or None): blocks that lie wholly in it never run.
            video (int or None): number of a video of :meth:`streams`, from 0, for which this
                counts instead of what counts for all; a single video has number 0. None: for all.

        Raises:
            ValueError: a part is neither mask nor polygons, or is empty or not finite. The next
                frame raises it where a part does not fit the picture.
        """
        if video is not None:
            video = whole(0, least=0).check("video", video)
        self._regions.set(Region(area=area, always=always, never=never), video)

    @property
    def reads_vectors(self) -> bool:
        """bool: whether motion comes from the video's codec, see :meth:`VideoFrames.read`."""
        return self._inputs.reads_vectors

    def __call__(self, image: Picture, vectors: FrameVectors | None = None) -> FrameResult:
        """
        Run the next frame of the video. Its memory may be overwritten when the call returns; that
        of a tensor, by the current stream.

        Args:
            image (ndarray, PIL.Image.Image or tensor): uint8, (H, W, 3), BGR. Objects on a GPU that
                support DLPack stay there, and may be (3, H, W).
            vectors (FrameVectors or None): motion from the frame of the last call to this one, see
                :meth:`VideoFrames.read`. Used if ``reads_vectors``.

        Returns:
            FrameResult: reads like the output dict, in pixels of ``image``.
        """
        picture = as_picture(image)
        if isinstance(picture, np.ndarray):
            picture = self._inputs.send(picture)
        return self._tick([picture], [vectors], self._stream, self._policies[:1])[0]

    def stream(
        self,
        source: Source,
        *,
        fps: float | None = None,
        reconnect: float = math.inf,
        decoder: str = "pyav",
    ) -> Iterator[tuple[np.ndarray, FrameResult]]:
        """
        Run a video from its first frame, decoded on a thread of its own, in constant memory. If the
        model is on a GPU, the same thread sends the frames there as bytes, while the GPU runs
        earlier ones. Any number of streams may be open at once; they learn one policy. Closing one,
        or an interrupt, waits at most a second for a silent source.

        A camera, or an address that streams without an end, gives its newest frame; the ``dropped``
        of the next result counts those that came meanwhile. A lost one is tried again, and the
        stream goes on with a frame that executes all blocks. All frames of files and iterables are
        run. ``result.clock`` says when a frame came.

        Args:
            source (str, PathLike, int or iterable): a file, a folder of frames, an address
                (``rtsp://...``, ``http://...``), the number of a camera, or pictures for
                :meth:`__call__`, which are copied as they come, on their device.
            fps (float or None): most frames to run per second: of a file by its own clock, of a
                live source by the time at which its frames come. None: all of them.
            reconnect (float): seconds for which a live source that was lost is tried again; after
                them the loss is an error. Default: without an end. 0: not at all.
            decoder (str): decoder of video files: "pyav", "torchcodec", or "auto": torchcodec where
                it is installed and the GPU of the model decodes the file. Frames that a GPU decodes
                stay there: they are tensors.

        Yields:
            tuple[ndarray or Tensor, FrameResult]: a frame, uint8 (H, W, 3), BGR, and its result.

        Raises:
            FrameReadError: the source is broken, or was not found again in time.
            ValueError: a setting is out of range, or ``fps`` is for pictures without times.
        """
        try:
            state = self._unused.pop()  # At once: another thread may want it.
        except IndexError:
            state = self.model.init_state()
        try:
            state.reset()
            feeds = self._feeds([source], [fps], reconnect, decoder)
            with contextlib.closing(self._run(feeds, state, self._policies[:1])) as ticks:
                for ((image, result),) in ticks:
                    yield image, result
                    del image, result
        finally:
            self._unused.append(state)

    def streams(
        self,
        sources: Iterable[Source],
        *,
        own_policies: bool = False,
        fps: float | Sequence[float | None] | None = None,
        reconnect: float = math.inf,
        decoder: str = "pyav",
    ) -> Iterator[list[tuple[np.ndarray, FrameResult] | None]]:
        """
        Run several videos of one size together, a frame of each at a time. Cameras do not wait
        for each other: those that have no new frame, or are lost, are left out meanwhile.

        Args:
            sources (iterable): videos, each of a kind that :meth:`stream` takes.
            own_policies (bool): every video learns a policy for itself, all from that of the
                model, which stays as it is. Default: they learn that one together.
            fps (float, sequence or None): see :meth:`stream`; one for all videos or one for each.
            reconnect, decoder: see :meth:`stream`.

        Yields:
            list[tuple[ndarray, FrameResult] or None]: of every video; None where it has ended, or
            where a live one has no new frame.

        Raises:
            FrameReadError: see :meth:`stream`.
            ValueError: also where ``fps`` has another length than ``sources``.
        """
        if isinstance(sources, (str, bytes, os.PathLike)) or not isinstance(sources, Iterable):
            raise TypeError(f"Expected several videos, not {sources!r}: give a list of them.")
        sources = list(sources)
        if not sources:
            raise ValueError("There is no video to run: the list of videos is empty.")
        rates = list(fps) if isinstance(fps, Iterable) else [fps] * len(sources)
        if len(rates) != len(sources):
            raise ValueError(f"fps has {len(rates)} rates for {len(sources)} videos.")
        self._regions.check(len(sources))
        policies = self._policies[:1]
        if flag(False).check("own_policies", own_policies):
            # Copied together, so that each learner teaches its policy's copy.
            with torch.inference_mode(False):
                policies = [copy.deepcopy(policies[0]) for _ in sources]
            self._policies = [*self._policies, *policies]
        own = [policy for policy, _ in policies] if own_policies else None
        try:
            feeds = self._feeds(sources, rates, reconnect, decoder)
            yield from self._run(feeds, StreamBatch(len(sources), policies=own), policies)
        finally:
            if own_policies:
                self._policies = [p for p in self._policies if not any(p is q for q in policies)]

    def _feeds(self, sources, rates, reconnect, decoder):
        """Yields the reader of each source, on a thread of its own."""
        for source, fps in zip(sources, rates, strict=True):
            frames = open_frames(source, decoder=decoder, device=self.model.device)
            if isinstance(frames, OwnFrames) and self._inputs.sends:
                frames.copy = self._inputs.uploader.copy
            yield FrameFeed(
                frames,
                vectors=self.reads_vectors,
                fps=fps,
                reconnect=reconnect,
                send=functools.partial(self._inputs.send, stays=True),
            )

    def _run(self, feeds, batch, policies):
        """Returns an iterator over the results of :meth:`streams` for several feeds."""
        return run_feeds(
            feeds,
            run=lambda pictures, vectors: self._tick(pictures, vectors, batch, policies),
            reset=functools.partial(self._reset_slot, batch),
        )

    def _reset_slot(self, batch, slot):
        with self.model.lock:
            batch.reset(slot)

    def _tick(self, pictures, vectors, batch, policies):
        # Frames of other threads must not come between a decision and learning from it.
        with self.model.lock:
            return self._run_tick(pictures, vectors, batch, policies)

    def _run_tick(self, pictures, vectors, batch, policies):
        start = self._clock()
        inputs = [
            None if picture is None else self._inputs.map(picture, motion)
            for picture, motion in zip(pictures, vectors, strict=True)
        ]
        for video, mapped in enumerate(inputs):
            if mapped is not None:
                self._regions.place(mapped, video, self.model.block_size)
        learners = [learner for _, learner in policies]
        results = self.model.step_batch(inputs, batch, learner=learners)
        for mapped, result in zip(inputs, results, strict=True):
            if result is not None:
                result.scale = mapped["image"].shape[-2] / mapped["height"]
                result.region = mapped.get("region")
        present = [result for result in results if result is not None]
        if self._budget is not None and not any(result.is_first for result in present):
            read_whole(*present)  # Part of a frame.
            executed = statistics.fmean(result.executed for result in present)
            target = self._budget.update(self._clock() - start, executed)
            if target is not None:
                self.set_target(target)
        return results


def _follower(policy, learner):
    """Returns the object that has the target of a policy: its learner, or the policy itself."""
    if learner is not None:
        return learner
    if not hasattr(policy, "target"):
        when = " while it does not learn" if policy.learns else ""
        raise ValueError(f"{type(policy).__name__} follows no target{when}.")
    return policy
