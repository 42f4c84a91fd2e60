"""
The frames of a stream as CUDA graphs: image in, detections and information gain out, the host only
launches.

Shape shorthand in this module:

    GH, GW: rows and columns of the block grid
    h, w: policy resolution
    D: slots for detections
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from blockcopy_d2.policy import Decision
from blockcopy_d2.sparse import BlockGrid, BlockSparseModule, block_sparse, num_blocks
from blockcopy_d2.sparse.module import SparseFrame, execution
from blockcopy_d2.sparse.torch_ops import Execution as TorchExecution

from .frame_steps import (
    all_blocks,
    at_policy_resolution,
    choose_blocks,
    find_cuts,
    normalize,
    remember,
)
from .precision import inference_autocast
from .recorded_function import RecordedFunction
from .recorded_learning import RecordedLearning
from .result import RecordedFrameResult
from .static_heads import FrameSizes, StaticDetections, StaticRCNN, supports
from .stream_memory import StreamMemory
from .timing import StageTimer

__all__ = ["FrameGraph"]

# Calls before a frame is recorded, in which libraries choose, compile and allocate.
_WARM_CALLS = 2
# Kinds of frames whose recordings are kept; most streams have one or two.
_MAX_RECORDINGS = 4


class FrameGraph:
    """
    Runs the frames of one stream of a :class:`BlockCopyVideoModel` around a Faster or Mask R-CNN,
    with the same results as operator by operator. Policy, sampling, the block-sparse network,
    proposal selection, RoI heads and what is remembered are CUDA graphs, one per stage, replayed
    whatever blocks are active; so are the information gain and the learner's step. The host waits
    only where it reads a result.

    It belongs to a stream, on whose features its graphs work in place. The first frame of a size
    allocates memory and records; after it nothing is allocated but what results keep. On a device
    without graphs the same functions are called instead, which is for tests.

    Attributes:
        memory (StreamMemory or None): of the stream, from its first frame on.
        frames (int): run so far, of all videos.
    """

    def __init__(self, settings):
        """
        Args:
            settings (tuple): of the model, see :meth:`of`.
        """
        self._settings = settings
        self._forget()

    def _forget(self):
        self._recordings = {}
        self._second_stage = self._learning = self._pool = self._latest = self.memory = None
        self.frames = 0

    @classmethod
    def of(cls, model, streams):
        """
        Args:
            model (BlockCopyVideoModel):
            streams (StreamBatch):

        Returns:
            FrameGraph or None: what runs their next frame, kept as ``streams.graph``; None where
            frames cannot be recorded, and for streams that started that way. A change of the
            model's settings holds from the next frame on, other weights start the stream anew.
        """
        graph = streams.graph
        if graph is None and streams.started:
            return None
        settings = _settings(model, streams)
        if graph is None or graph._settings != settings:
            if not _serves(model, streams):
                streams.graph = None
            elif graph is None:
                streams.graph = cls(settings)
            else:
                graph._change(settings, streams)
        return streams.graph

    def _change(self, settings, streams):
        if settings[0] != self._settings[0]:
            size = streams.image_size, streams.canvas_size
            streams.release()
            streams.image_size, streams.canvas_size = size
            streams.graph = self
            self._forget()
        self._settings = settings
        self._recordings.clear()

    # ---------------------------------------------------------------- frames

    def step(self, model, inputs, stream, *, learning=False, grid=None):
        """
        Args:
            model (BlockCopyVideoModel):
            inputs (dict): one of Detectron2's input dicts, for a stream of that size.
            stream (VideoStream): brought up to date by this call.
            learning, grid: as of :meth:`BlockCopyVideoModel.step`.

        Returns:
            RecordedFrameResult:
        """
        try:
            return self._step(model, inputs, stream, learning, grid)
        except BaseException:
            # Features may be of two frames, and memory that graphs work on may be gone.
            stream.release()
            raise

    def _step(self, model, inputs, stream, learning, grid):
        timer = StageTimer(model.device)
        count, is_first, is_new = stream.counts[0], not stream.started, self.memory is None
        recording = self._recording(model, inputs, stream, asks=grid is None and not is_first)
        with timer.stage("preprocess"):
            recording.image.copy_(inputs["image"], non_blocking=True)
        if is_new:
            recording.grid = all_blocks(model, stream) if grid is None else grid
        else:
            self._place(stream, grid, is_first)
            self._record(model, stream, recording)
        stages = self._stages(model, stream, recording)
        with timer.stage("preprocess"):
            recording.run("preprocess", stages)
        if grid is None:
            with timer.stage("policy"):
                recording.run("policy", stages)
        with timer.stage("inference"):
            with timer.stage("network"):
                recording.run("network", stages)
            recording.run("heads", stages)
            found = _copied(recording.detections)
        with timer.stage("observe"):
            recording.run("observe", stages)
        if is_new:
            self.memory = StreamMemory(stream)
        self.memory.bind(stream)
        self.frames += 1
        self._latest = recording
        result = self._result(
            model, stream, found, timer, learning=learning, grid=grid, is_first=is_first
        )
        if is_new:
            self._prepare(model, inputs, stream, asks=grid is None)
        stream.counts = [count + 1]
        return result

    def _recording(self, model, inputs, stream, *, asks):
        image = inputs["image"]
        output_size = (inputs.get("height", image.shape[1]), inputs.get("width", image.shape[2]))
        key = (tuple(image.shape), image.dtype, output_size, asks)
        if key not in self._recordings:
            while len(self._recordings) >= _MAX_RECORDINGS:
                self._recordings.pop(next(iter(self._recordings)))
            sizes = FrameSizes(
                image_size=stream.image_size,
                canvas_size=stream.canvas_size,
                output_size=output_size,
                grid_shape=num_blocks(model.block_size, stream.canvas_size),
                pixels_per_block=model.task.pixels_per_block,
            )
            image = torch.zeros(image.shape, dtype=image.dtype, device=model.device)
            self._recordings[key] = _Recording(image=image, sizes=sizes, asks=asks)
        return self._recordings[key]

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

    def _stages(self, model, stream, recording):
        """dict[str, callable]: of a frame, in their order."""
        stages = {
            "preprocess": lambda: self._preprocess(model, recording),
            "policy": lambda: self._ask(model, stream, recording),
            "network": lambda: self._network(model, stream, recording),
            "heads": lambda: self._heads(model, recording),
            "observe": lambda: self._observe(model, stream, recording),
        }
        if not recording.asks:
            del stages["policy"]
        return stages

    def _preprocess(self, model, recording):
        recording.images = normalize(model, [recording.image])
        recording.frame = at_policy_resolution(model, recording.images)

    def _ask(self, model, stream, recording):
        recording.cut = find_cuts(model, recording.frame, stream)
        (recording.observation,), (recording.decision,), recording.grid = choose_blocks(
            model, recording.frame, stream, recording.cut
        )
        policy = policy_of(model, stream)
        if policy.learns and "policy" not in recording.macs:
            recording.count_macs("policy", lambda: policy.network(recording.observation))

    def _network(self, model, stream, recording):
        base, rpn = model.base, model.base.proposal_generator
        if self.memory is not None and not recording.asks:
            recording.grid = BlockGrid(
                self.memory.given, block_size=model.block_size, image_size=stream.canvas_size
            )
        dtype = next(base.backbone.parameters()).dtype
        with (
            inference_autocast(model.device, model.amp),
            block_sparse(base, recording.grid, stream.features) as work,
        ):
            recording.features = base.backbone(recording.images.tensor.to(dtype))
            recording.rpn = rpn.rpn_head([recording.features[name] for name in rpn.in_features])
        recording.programs = work.programs

    def _heads(self, model, recording):
        if self._second_stage is None:
            self._second_stage = StaticRCNN(model.base)
        inputs = (recording.features, *recording.rpn, recording.sizes)
        if "heads" not in recording.macs:
            recording.count_macs("heads", lambda: self._second_stage(*inputs))
        recording.detections = self._second_stage(*inputs)

    def _observe(self, model, stream, recording):
        outputs = [{"instances": recording.detections}]
        remember(model, stream, recording.frame, outputs, recording.grid)
        if self.memory is not None:
            self.memory.store(
                stream,
                cut=recording.cut,
                observation=recording.observation,
                decision=recording.decision,
            )

    # ---------------------------------------------------------------- recording

    def _prepare(self, model, inputs, stream, *, asks):
        """What the next frames need, while the first one is expected to be slow."""
        if len(self._latest.programs) < len(_sparse_modules(model)):
            # One that could not be captured runs as it is, maybe with a host in the loop.
            stream.graph = None
        elif asks:
            recording = self._recording(model, inputs, stream, asks=True)
            recording.image.copy_(inputs["image"], non_blocking=True)
            self._record(model, stream, recording)

    def _record(self, model, stream, recording):
        """Records a frame, and leaves everything as if it had not been run."""
        if recording.functions or not recording.image.is_cuda:
            return
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        generators = policy_of(model, stream).generators(model.device)
        history = self.memory.history()
        before = [x.clone() for x in history], [x.get_state() for x in generators]
        stages = self._stages(model, stream, recording)
        functions = {
            name: RecordedFunction(generators=generators, pool=self._pool) for name in stages
        }
        for _ in range(_WARM_CALLS):
            for name, stage in stages.items():
                functions[name](stage)
            for tensor, value in zip(history, before[0], strict=True):
                tensor.copy_(value)
            for generator, state in zip(generators, before[1], strict=True):
                generator.set_state(state)
        for name, stage in stages.items():
            functions[name].record(stage)
        recording.functions = functions
        self.memory.bind(stream)

    # ---------------------------------------------------------------- results

    def _result(self, model, stream, found, timer, *, learning, grid, is_first):
        recording, memory = self._latest, self.memory
        executed = BlockGrid(
            memory.active.clone(),
            block_size=model.block_size,
            image_size=recording.sizes.canvas_size,
        )
        work = SparseFrame(executed, state=None)
        work.programs = recording.programs
        decision = Decision(active=executed.active) if grid is None else None
        if recording.asks:
            has_logits = recording.decision.logits is not None
            decision = Decision(memory.drawn.clone(), memory.logits.clone() if has_logits else None)
        return RecordedFrameResult(
            self,
            found=found,
            was_asked=recording.asks,
            learning=learning,
            policy=policy_of(model, stream),
            decision=decision,
            grid=executed,
            age=memory.age.clone(),
            work=work,
            cut=memory.cut[0].clone(),
            broken=memory.broken[0].clone(),
            timer=timer,
            is_first=is_first,
            other_macs=dict(recording.macs),
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
            dict[str, Tensor]: of :meth:`OnlineLearner.observe`.
        """
        if self._learning is None or not self._learning.teaches(learner, policy):
            self._learning = RecordedLearning(learner, policy, pool=self._pool)
        return self._learning(model, self.memory, timer)


@dataclass
class _Recording:
    """
    Frames of one kind.

    Attributes:
        image (Tensor): (3, height, width), where a frame is put.
        sizes (FrameSizes):
        asks (bool): the policy, or executes what the memory says.
        functions (dict[str, RecordedFunction]): by stage; empty if not recorded.
        macs (dict[str, int]): multiply-accumulates outside the block-sparse modules, by stage.
        programs (list[Program]): of the block-sparse modules.
        images, frame, cut, observation, decision, grid, features, rpn, detections: what the stages
            leave for one another and for the result.
    """

    image: Tensor
    sizes: FrameSizes
    asks: bool
    functions: dict = field(default_factory=dict)
    macs: dict = field(default_factory=dict)
    programs: list = field(default_factory=list)
    images: Any = None
    frame: Tensor | None = None
    cut: Tensor | None = None
    observation: Any = None
    decision: Decision | None = None
    grid: BlockGrid | None = None
    features: dict | None = None
    rpn: tuple | None = None
    detections: StaticDetections | None = None

    def run(self, name, stages):
        """Replays a stage, or runs it where it was not recorded; nothing if there is none."""
        if name not in stages:
            return
        if self.functions:
            self.functions[name](stages[name])
        else:
            stages[name]()

    def count_macs(self, name, function):
        with FlopCounterMode(display=False) as counter, torch.enable_grad():
            function()
        self.macs[name] = counter.get_total_flops() // 2


def policy_of(model, streams):
    """
    Returns:
        Policy: of a stream, the first of them.
    """
    return model.policy if streams.policies is None else streams.policies[0]


def _settings(model, streams):
    """What recordings depend on, the weights first."""
    policy = policy_of(model, streams)
    return (
        model.weights_version,
        model.cuda_graph,
        policy,
        # Policies that do not learn compare with it on the host.
        getattr(policy, "target", None),
        model.scene_cut,
        model.refresh_every,
        model.dense_above,
        model.amp,
    )


def _serves(model, streams):
    return (
        model.cuda_graph
        and streams.num_streams == 1
        and policy_of(model, streams).capturable
        and supports(model.base)
        and _has_graphs(model)
    )


def _has_graphs(model):
    """Whether the block-sparse modules run as Triton's kernels, on CUDA."""
    like = model.base.pixel_mean
    return like.is_cuda and all(
        isinstance(module, BlockSparseModule)
        and execution(module.backend, like) is not TorchExecution
        for module in _sparse_modules(model)
    )


def _sparse_modules(model):
    return model.base.backbone, model.base.proposal_generator.rpn_head


def _copied(detections):
    """What Instances are made of, in memory of its own."""
    names = ("count", "boxes", "scores", "classes", "masks")
    values = {name: getattr(detections, name) for name in names}
    return dataclasses.replace(
        detections, **{name: x.clone() for name, x in values.items() if x is not None}
    )
