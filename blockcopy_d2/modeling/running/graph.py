"""
Runs frames of streams as CUDA graphs, from images to outputs and information gain. The host only
launches.

Shape shorthand in this module:

    N: streams of a batch
    h, w: policy resolution
"""

import functools
from dataclasses import dataclass

import torch

from blockcopy_d2.sparse import BlockGrid, BlockSparseModule, num_blocks
from blockcopy_d2.sparse.module import SparseFrame, execution
from blockcopy_d2.sparse.torch_ops import Execution as TorchExecution

from ..fixed_shape import FrameSizes, find_static_heads
from .captured_learning import CapturedLearning
from .frame_capture import FrameCapture
from .inputs import put_image
from .memory import StreamMemory
from .readout import CountForecast, Readout, SentCounts
from .result import CapturedFrameResult
from .steps import all_blocks, policies_of
from .timing import StageTimer

__all__ = ["FrameGraph", "WeightsChanged"]

# Number of kinds of frames whose captures are kept; most batches have one or two.
_MAX_CAPTURES = 4


class WeightsChanged(Exception):
    """The weights of the task network are no longer those of the last frame."""


class FrameGraph:
    """
    Runs the frames of a single stream, or of a batch of N, for a :class:`BlockCopyVideoModel` whose
    meta-architecture has :class:`StaticHeads`. Results are those of running operator by operator.
    One CUDA graph holds preprocessing, policy, sampling, the block-sparse network and its heads
    until the number of detections is known; it is replayed for any active blocks. The rest of the
    heads is the second graph, which results are read from. The update of the history with the
    information gain, and the learner's step, are one graph each after it. The host waits only where
    it reads a result.

    It belongs to the streams, on whose features its graphs work in place. The first frame of a size
    allocates memory and captures. After it, only results allocate memory. Every stream keeps its
    slot. Tensors that the graphs read say which slots have a frame, and which frames are the first
    of a video, so videos begin, end, cut and miss frames without a new capture. A slot without a
    frame executes nothing and keeps its state, bit for bit. On a device without graphs, the same
    functions are called instead; tests use that.

    Attributes:
        memory (StreamMemory or None): memory of the streams, from their first frame on.
        frames (int): number of ticks so far, over all videos.
        lesson (list[int]): the slots whose policies decided the latest tick, and can learn from it.
    """

    def __init__(self, options, parts, num_streams):
        """
        Args:
            options (VideoOptions): options of the model.
            parts (_Parts): parts of the model.
            num_streams (int): N.
        """
        self._options, self._parts = options, parts
        self._settled = self._capturable = True
        # Counts over all videos. By it, the result of an earlier frame knows that its memory is
        # reused.
        self.frames, self.lesson = 0, []
        self._captures, self._images, self._lessons = {}, {}, {}
        # The slots with a frame, on the host and as graphs read them. Single streams have one.
        self._present_now, self._present = [True] * num_streams, None
        self._heads = self._latest = self.memory = None
        self._pool = self._side = None
        self._forecast = CountForecast(num_streams)

    @classmethod
    def of(cls, model, streams, inputs=()):
        """
        Args:
            model (BlockCopyVideoModel):
            streams (StreamBatch):
            inputs (sequence[dict or None]): inputs of the next frame.

        Returns:
            FrameGraph or None: the graph that runs their next frame, kept as ``streams.graph``.
            None if frames cannot be captured, and for streams that started without. Changes of the
            model's options or parts apply from the next frame on.
        """
        graph = streams.graph
        if graph is None and streams.started:
            return None
        if len(_output_sizes(inputs)) > 1:
            streams.leave_graph()
            return None
        options, parts = model.options, _Parts.of(model, streams)
        if graph is None or graph._options != options or graph._parts != parts:
            # The memory has no place for the features of another estimator.
            other_motion = graph is not None and graph._parts.motion is not model.motion
            if other_motion or not cls.serves(model, streams):
                streams.leave_graph()
            elif graph is None:
                streams.graph = cls(options, parts, streams.num_streams)
            else:
                graph._change(options, parts)
        graph = streams.graph
        if graph is not None and not graph._capturable:
            streams.leave_graph()
        return streams.graph

    @staticmethod
    def serves(model, streams):
        """
        Args:
            model (BlockCopyVideoModel):
            streams (StreamBatch):

        Returns:
            bool: whether a graph can run their frames, as far as can be known before the first one.
        """
        return (
            model.cuda_graph
            and all(policy.capturable for policy in policies_of(model, streams))
            and model.task.capturable
            and find_static_heads(model.base) is not None
            and _has_graphs(model)
            and (model.motion is None or model.motion.capturable)
        )

    def _change(self, options, parts):
        self._captures.clear()
        # The memory pool of deleted graphs takes no new ones.
        self._pool = None
        self._lessons.clear()
        # Some may change with every frame, such as a target that follows a budget.
        self._options, self._parts, self._settled = options, parts, False

    # ---------------------------------------------------------------- frames

    def step(self, model, inputs, streams, *, present, learning=False, grid=None, verify=None):
        """
        Args:
            model (BlockCopyVideoModel):
            inputs (list[dict or None]): Detectron2's input dicts, for streams of that size.
            streams (StreamBatch): updated by this call.
            present (list[bool]): the streams that do have a frame.
            learning, grid: see :meth:`BlockCopyVideoModel.step_batch`.
            verify (callable or None): raises WeightsChanged if the task network has other weights
                than in the last frame. It takes long: if the frame is replayed, it is called while
                the device works already.

        Returns:
            list[CapturedFrameResult or None]: one for every stream.

        Raises:
            WeightsChanged: the memory of the streams may hold anything; policies have drawn
                nothing.
        """
        timer = StageTimer(model.device)
        is_first = [count == 0 for count in streams.counts]
        is_new, asks = self.memory is None, grid is None and streams.started
        capture = self._capture_of(model, inputs, streams, asks=asks)
        late = capture.is_captured
        if verify is not None and not late:
            verify()
        with timer.stage("preprocess"):
            self._mark(present)
            for place, one in zip(capture.image, inputs, strict=True):
                if one is not None:
                    put_image(one["image"], place)
        if is_new:
            # For streams without a frame, too: features that were never written are NaN.
            capture.grid = all_blocks(model, streams)
        else:
            self._place(streams, grid)
            if self._settled:
                self._capture(model, streams, capture)
        on = (model, streams, self.memory, timer)
        if grid is None and not capture.asks:
            # The policy is not asked on a first frame, which takes no time.
            timer.add("policy", timer.now())
        if verify is not None and late:
            self._run_and_verify(capture, on, verify)
        else:
            capture.run("infer", *on)
        counts = None if capture.count is None else SentCounts(capture.count)
        capture.run("finish", *on)
        taken = capture.take_result(timer)
        readout = Readout(self._heads, taken, self._side, counts, self._forecast)
        capture.run("observe", *on)
        if is_new:
            self.memory = StreamMemory(streams)
            for slot, is_present in enumerate(present):
                if not is_present:
                    self.memory.history.forget(slot)
        self.memory.bind(streams)
        self.frames += 1
        self._latest, self._settled = capture, True
        results = self._results(
            model, streams, readout, timer, learning=learning, grid=grid, is_first=is_first
        )
        if is_new:
            self._prepare(model, inputs, streams, asks=grid is None)
        streams.advance(present)
        return results

    def _run_and_verify(self, capture, on, verify):
        generators = capture.generators(*on[:2])
        states = [generator.get_state() for generator in generators]
        capture.run("infer", *on)
        try:
            verify()
        except WeightsChanged:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
            raise

    def _capture_of(self, model, inputs, streams, *, asks):
        images = [one["image"] for one in inputs if one is not None]
        dtype = functools.reduce(torch.promote_types, (image.dtype for image in images))
        shape = (streams.num_streams, *images[0].shape)
        (output_size,) = _output_sizes(inputs)
        key = (shape, dtype, output_size, asks)
        if key not in self._captures:
            while len(self._captures) >= _MAX_CAPTURES:
                self._captures.pop(next(iter(self._captures)))
            sizes = FrameSizes(
                image_size=streams.image_size,
                canvas_size=streams.canvas_size,
                output_size=output_size,
                grid_shape=num_blocks(model.block_size, streams.canvas_size),
                pixels_per_block=model.task.pixels_per_block,
            )
            if self._heads is None:
                self._heads = find_static_heads(model.base)(model.base)
                self._side = torch.cuda.Stream() if model.device.type == "cuda" else None
                if streams.num_streams > 1:
                    now = (True,) * streams.num_streams
                    self._present = torch.tensor(now, device=model.device)
            if (shape, dtype) not in self._images:
                self._images[shape, dtype] = torch.zeros(shape, dtype=dtype, device=model.device)
            place, moves = self._images[shape, dtype], model.motion is not None
            capture = FrameCapture(place, self._present, sizes, self._heads, asks=asks, moves=moves)
            self._captures[key] = capture
        return self._captures[key]

    def _mark(self, present):
        """
        Informs graphs which slots have a frame. A slot is written as a constant, so that the host
        need not wait for a copy.
        """
        for slot, (now, before) in enumerate(zip(present, self._present_now, strict=True)):
            if now != before:
                self._present[slot].fill_(now)
        self._present_now = list(present)

    def _place(self, streams, grid):
        """Writes the inputs of the frame to the memory where graphs read them."""
        self.memory.bind(streams)
        if not streams.started:
            self.memory.start_anew()
        if grid is not None:
            self.memory.given.copy_(grid.active)
        elif not streams.started:
            self.memory.given.fill_(True)

    def _prepare(self, model, inputs, streams, *, asks):
        """Prepares for the next frames, since the first one is expected to be slow."""
        if len(self._latest.programs) < len(self._heads.sparse_modules(model.base)):
            # A module that could not be traced runs as it is, and may wait for the host.
            self._capturable = False
        elif asks:
            self._capture(model, streams, self._capture_of(model, inputs, streams, asks=True))

    def _capture(self, model, streams, capture):
        capture.capture(model, streams, self.memory, self._graph_pool(model))

    def _graph_pool(self, model):
        if self._pool is None and model.device.type == "cuda":
            self._pool = torch.cuda.graph_pool_handle()
        return self._pool

    # ---------------------------------------------------------------- results

    def _results(self, model, streams, readout, timer, *, learning, grid, is_first):
        """list[CapturedFrameResult or None]: one for every stream, in memory of their own."""
        capture, memory = self._latest, self.memory
        layout = {"block_size": model.block_size, "image_size": capture.sizes.canvas_size}
        kept = capture.take(memory, timer)
        # For a stream without a frame, the memory still holds the blocks of its last one.
        work = SparseFrame(BlockGrid(kept["executed"], **layout), state=None)
        work.programs, work.dense_module_macs = capture.programs, capture.dense_module_macs
        work.may_improve = capture.may_improve
        policies = policies_of(model, streams)
        results = [None] * streams.num_streams
        for n, is_present in enumerate(self._present_now):
            if not is_present:
                continue
            was_asked = capture.asks and not is_first[n]
            results[n] = CapturedFrameResult(
                self,
                n,
                readout=readout,
                kept=kept,
                was_asked=was_asked,
                was_drawn=was_asked and capture.has_logits[n],
                was_given=grid is not None,
                learning=learning[n] if isinstance(learning, list) else learning,
                policy=policies[n],
                work=work,
                timer=timer,
                is_first=is_first[n],
                has_field=not all(is_first),
                heads_macs=capture.macs["heads"],
                policy_macs=capture.policy_macs[n] if was_asked else 0,
            )
        self.lesson = [
            n for n, result in enumerate(results) if result is not None and result.was_drawn
        ]
        return results

    @property
    def latest_frame(self):
        """Tensor: float (N, 3, h, w), normalized."""
        return self._latest.frame

    def learn(self, model, learner, policy, slots, timer):
        """
        Teach a policy from the latest frames, which it decided.

        Args:
            model (BlockCopyVideoModel):
            learner (OnlineLearner): the only learner of the policy.
            policy (Policy):
            slots (list[int]): slots of the frames.
            timer (StageTimer): timer of the frames.

        Returns:
            dict[str, Tensor] or None: see :meth:`OnlineLearner.learn`. None if graphs do not serve
            these frames together: they serve the whole ``lesson``, or one frame of it.
        """
        if slots == self.lesson and len(self._parts.policies) == 1:
            # Frames of the batch outside the lesson are left out on the device.
            key, part = None, slice(None)
        elif len(slots) == 1:
            (key,), part = slots, slice(slots[0], slots[0] + 1)
        else:
            return None
        lesson = self._lessons.get(key)
        if lesson is None or not lesson.teaches(learner, policy):
            pool = self._graph_pool(model)
            lesson = CapturedLearning(learner, policy, part, self._present, pool=pool)
            self._lessons[key] = lesson
        return lesson(model, self.memory, timer)


@dataclass(frozen=True)
class _Parts:
    """
    The settings of a model's parts that captures fix, besides the weights of the task network.

    Attributes:
        task (Task):
        motion (MotionEstimator or None):
        policies (list[Policy]): policies of the streams, each of them once.
        numbers (list[dict]): numbers of the policies. A policy that does not learn compares with
            its target, or counts to its period, on the host.
        weights (list[int]): addresses of the policies' weights, which captures read in place.
    """

    task: object
    motion: object
    policies: list
    numbers: list
    weights: list

    @classmethod
    def of(cls, model, streams):
        policies = list(dict.fromkeys(policies_of(model, streams)))
        numbers = [
            {name: x for name, x in vars(policy).items() if isinstance(x, int | float)}
            for policy in policies
        ]
        weights = [x.data_ptr() for policy in policies for x in policy.parameters()]
        return cls(model.task, model.motion, policies, numbers, weights)


def _output_sizes(inputs):
    """set[tuple[int, int]]: heights and widths of the outputs."""
    return {
        (one.get("height", one["image"].shape[1]), one.get("width", one["image"].shape[2]))
        for one in inputs
        if one is not None
    }


def _has_graphs(model):
    """Returns whether the block-sparse modules run as Triton's kernels, on CUDA."""
    like = model.base.pixel_mean
    return like.is_cuda and all(
        isinstance(module, BlockSparseModule)
        and execution(module.backend, like) is not TorchExecution
        for module in find_static_heads(model.base).sparse_modules(model.base)
    )
