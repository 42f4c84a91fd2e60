"""
The frames of a stream as CUDA graphs: image in, output and information gain out, the host only
launches.

Shape shorthand: h x w policy resolution.
"""

from dataclasses import dataclass

import torch

from blockcopy_d2.policy import Decision
from blockcopy_d2.sparse import BlockGrid, BlockSparseModule, num_blocks
from blockcopy_d2.sparse.module import SparseFrame, execution
from blockcopy_d2.sparse.torch_ops import Execution as TorchExecution

from ..fixed_shape import FrameSizes, find_static_heads
from .captured_learning import CapturedLearning
from .frame_capture import FrameCapture
from .memory import StreamMemory
from .readout import Readout
from .result import CapturedFrameResult
from .steps import all_blocks, policy_of
from .timing import StageTimer

__all__ = ["FrameGraph"]

# Kinds of frames whose captures are kept; most streams have one or two.
_MAX_CAPTURES = 4


class FrameGraph:
    """
    Runs the frames of one stream of a :class:`BlockCopyVideoModel` around a meta-architecture that
    there are :class:`StaticHeads` for, with the same results as operator by operator.
    Preprocessing, policy, sampling, the block-sparse network and what follows it (proposal
    selection, RoI heads) are one CUDA graph, replayed whatever blocks are active; what is
    remembered, the information gain and the learner's step are one each, behind what a result is
    read from. The host waits only where it reads a result.

    It belongs to a stream, on whose features its graphs work in place. The first frame of a size
    allocates memory and captures; after it nothing is allocated but what results keep. On a device
    without graphs the same functions are called instead, which is for tests.

    Attributes:
        memory (StreamMemory or None): of the stream, from its first frame on.
        frames (int): run so far, of all videos.
    """

    def __init__(self, options, parts):
        """
        Args:
            options (VideoOptions): of the model.
            parts (_Parts): of the model.
        """
        self._options, self._parts = options, parts
        self._settled = self._capturable = True
        # Of all videos: a result of an earlier frame knows by it that its memory is in use again.
        self.frames = 0
        self._captures = {}
        self._heads = self._learning = self._latest = self.memory = None
        self._pool = self._side = None

    @classmethod
    def of(cls, model, streams):
        """
        Args:
            model (BlockCopyVideoModel):
            streams (StreamBatch):

        Returns:
            FrameGraph or None: what runs their next frame, kept as ``streams.graph``; None where
            frames cannot be captured, and for streams that started that way. A change of the
            model's options or parts holds from the next frame on.
        """
        graph = streams.graph
        if graph is None and streams.started:
            return None
        options, parts = model.options, _Parts.of(model, streams)
        if graph is None or graph._options != options or graph._parts != parts:
            # Memory has no place for what another estimator remembers.
            if not _serves(model, streams) or (graph and graph._parts.motion is not model.motion):
                streams.graph = None
            elif graph is None:
                streams.graph = cls(options, parts)
            else:
                graph._change(options, parts)
        graph = streams.graph
        return graph if graph is not None and graph._capturable else None

    def _change(self, options, parts):
        self._captures.clear()
        # Memory of graphs that are gone takes no new ones.
        self._pool = self._learning = None
        # One may change with every frame, such as a target that follows a budget.
        self._options, self._parts, self._settled = options, parts, False

    # ---------------------------------------------------------------- frames

    def step(self, model, inputs, stream, *, learning=False, grid=None):
        """
        Args:
            model (BlockCopyVideoModel):
            inputs (dict): one of Detectron2's input dicts, for a stream of that size.
            stream (VideoStream): brought up to date by this call.
            learning, grid: as of :meth:`BlockCopyVideoModel.step`.

        Returns:
            CapturedFrameResult:
        """
        timer = StageTimer(model.device)
        is_first, is_new = not stream.started, self.memory is None
        capture = self._capture_of(model, inputs, stream, asks=grid is None and not is_first)
        with timer.stage("preprocess"):
            capture.image.copy_(inputs["image"], non_blocking=True)
        if is_new:
            capture.grid = all_blocks(model, stream) if grid is None else grid
        else:
            self._place(stream, grid, is_first)
            if self._settled:
                self._capture(model, stream, capture)
        on = (model, stream, self.memory, timer)
        if grid is None and not capture.asks:
            # Not asked on a first frame, which takes no time.
            timer.add("policy", timer.now())
        capture.run("infer", *on)
        with timer.stage("inference"):
            readout = Readout(self._heads.output_name, capture.result, self._side)
        capture.run("observe", *on)
        if is_new:
            self.memory = StreamMemory(stream)
        self.memory.bind(stream)
        self.frames += 1
        self._latest, self._settled = capture, True
        result = self._result(
            model, stream, readout, timer, learning=learning, grid=grid, is_first=is_first
        )
        if is_new:
            self._prepare(model, inputs, stream, asks=grid is None)
        stream.advance([True])
        return result

    def _capture_of(self, model, inputs, stream, *, asks):
        image = inputs["image"]
        output_size = (inputs.get("height", image.shape[1]), inputs.get("width", image.shape[2]))
        key = (tuple(image.shape), image.dtype, output_size, asks)
        if key not in self._captures:
            while len(self._captures) >= _MAX_CAPTURES:
                self._captures.pop(next(iter(self._captures)))
            sizes = FrameSizes(
                image_size=stream.image_size,
                canvas_size=stream.canvas_size,
                output_size=output_size,
                grid_shape=num_blocks(model.block_size, stream.canvas_size),
                pixels_per_block=model.task.pixels_per_block,
            )
            if self._heads is None:
                self._heads = find_static_heads(model.base)(model.base)
                self._side = torch.cuda.Stream() if model.device.type == "cuda" else None
            place = torch.zeros(image.shape, dtype=image.dtype, device=model.device)
            moves = model.motion is not None
            capture = FrameCapture(place, sizes, self._heads, asks=asks, moves=moves)
            self._captures[key] = capture
        return self._captures[key]

    def _place(self, stream, grid, is_first):
        """Puts what the frame depends on where it is read."""
        self.memory.bind(stream)
        if is_first:
            if grid is not None and not grid.is_full:
                raise RuntimeError(
                    "The first frame of a stream must run all blocks: pass BlockGrid.full(), or"
                    " None to let the model see to it."
                )
            self.memory.start_anew()
            self.memory.given.fill_(True)
        elif grid is not None:
            self.memory.given.copy_(grid.active)

    def _prepare(self, model, inputs, stream, *, asks):
        """What the next frames need, while the first one is expected to be slow."""
        if len(self._latest.programs) < len(self._heads.sparse_modules(model.base)):
            # One that the engine could not trace runs as it is, maybe with a host in the loop.
            self._capturable = False
        elif asks:
            capture = self._capture_of(model, inputs, stream, asks=True)
            capture.image.copy_(inputs["image"], non_blocking=True)
            self._capture(model, stream, capture)

    def _capture(self, model, stream, capture):
        capture.capture(model, stream, self.memory, self._graph_pool(model))

    def _graph_pool(self, model):
        if self._pool is None and model.device.type == "cuda":
            self._pool = torch.cuda.graph_pool_handle()
        return self._pool

    # ---------------------------------------------------------------- results

    def _result(self, model, stream, readout, timer, *, learning, grid, is_first):
        capture, memory = self._latest, self.memory
        executed = BlockGrid(
            memory.history.active.clone(),
            block_size=model.block_size,
            image_size=capture.sizes.canvas_size,
        )
        work = SparseFrame(executed, state=None)
        work.programs, work.dense_module_macs = capture.programs, capture.dense_module_macs
        work.may_improve = capture.may_improve
        decision = Decision(active=executed.active) if grid is None else None
        if capture.asks:
            has_logits = capture.decision.logits is not None
            decision = Decision(memory.drawn.clone(), memory.logits.clone() if has_logits else None)
        return CapturedFrameResult(
            self,
            readout=readout,
            was_asked=capture.asks,
            learning=learning,
            policy=policy_of(model, stream),
            decision=decision,
            grid=executed,
            age=memory.history.age.clone(),
            work=work,
            cut=memory.cut[0].clone(),
            broken=memory.broken[0].clone(),
            timer=timer,
            is_first=is_first,
            heads_macs=capture.macs["heads"],
            field=None if is_first or capture.field is None else capture.field.clone(),
            policy_macs=capture.macs["policy"],
        )

    @property
    def latest_frame(self):
        """Tensor: float (1, 3, h, w), normalized."""
        return self._latest.frame

    def learn(self, model, learner, policy, timer):
        """
        Teach a policy the latest frame, which it decided.

        Args:
            model (BlockCopyVideoModel):
            learner (OnlineLearner): alone with the policy.
            policy (Policy):
            timer (StageTimer): of the frame.

        Returns:
            dict[str, Tensor]: of :meth:`OnlineLearner.learn`.
        """
        if self._learning is None or not self._learning.teaches(learner, policy):
            pool = self._graph_pool(model)
            self._learning = CapturedLearning(learner, policy, pool=pool)
        return self._learning(model, self.memory, timer)


@dataclass(frozen=True)
class _Parts:
    """
    What captures hold for good of a model's parts, besides the weights of the task network.

    Attributes:
        task (Task):
        motion (MotionEstimator or None):
        policy (Policy): of the stream.
        numbers (dict): of the policy. One that does not learn compares with its target, or counts
            to its period, on the host.
        weights (list[int]): addresses of the policy's, which captures read where they are.
    """

    task: object
    motion: object
    policy: object
    numbers: dict
    weights: list

    @classmethod
    def of(cls, model, streams):
        policy = policy_of(model, streams)
        numbers = {name: x for name, x in vars(policy).items() if isinstance(x, int | float)}
        weights = [parameter.data_ptr() for parameter in policy.parameters()]
        return cls(model.task, model.motion, policy, numbers, weights)


def _serves(model, streams):
    return (
        model.cuda_graph
        and streams.num_streams == 1
        and policy_of(model, streams).capturable
        and model.task.capturable
        and find_static_heads(model.base) is not None
        and _has_graphs(model)
        and (model.motion is None or model.motion.capturable)
    )


def _has_graphs(model):
    """Whether the block-sparse modules run as Triton's kernels, on CUDA."""
    like = model.base.pixel_mean
    return like.is_cuda and all(
        isinstance(module, BlockSparseModule)
        and execution(module.backend, like) is not TorchExecution
        for module in find_static_heads(model.base).sparse_modules(model.base)
    )
