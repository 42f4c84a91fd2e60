"""
The stages of a frame as functions of tensors that stay where they are, captured as CUDA graphs.

Shape shorthand in this module:

    N: streams of a batch
    h, w: policy resolution
    FH, FW: rows and columns of cells of the motion field
"""

import functools

import torch

from blockcopy_d2.kernels.graph import CapturedFunction
from blockcopy_d2.kernels.packing import PackedCopies
from blockcopy_d2.sparse import BlockGrid, block_sparse
from blockcopy_d2.sparse.macs import count_macs

from ..fixed_shape import StaticDetections
from .arrival import look_at
from .history import flags
from .motion import estimate_motion, motion_features, move_history
from .precision import inference_autocast
from .preparation import prepare
from .result_copies import ResultCopies, TakenParts
from .steps import (
    choose_blocks,
    policies_of,
    remember,
)
from .timing import clock_of

__all__ = ["FrameCapture"]

# The graphs of a frame and their stages, each a method. The host is told the number of detections
# after the first graph, and reads the output after the second one, while the others run.
_PARTS = {
    "infer": ("preprocess", "motion", "policy", "move_caches", "network", "detect"),
    "finish": ("heads",),
    "observe": ("observe",),
}
# Names in a StageTimer for stages that do not count under their own name alone.
_COUNTS_TO = {
    "network": ("network", "inference"),
    "detect": ("inference",),
    "heads": ("inference",),
}
# Calls before a frame is captured, in which libraries choose algorithms, compile and allocate.
_WARM_CALLS = 2


class FrameCapture:
    """
    Frames of one kind, for all streams of a batch. A kind is a size and type of images, and whether
    policies are asked or blocks are given. Until they are captured, the stages run as functions.

    Attributes:
        image (Tensor): (N, 3, height, width), memory for the frames to run.
        sizes (FrameSizes): sizes of the frames.
        asks (bool): whether the policies are asked; if not, the memory gives the blocks.
        frame (Tensor): float (N, 3, h, w), the latest ones.
        field (Tensor or None): float32 (N, 2, FH, FW), their motion; None before streams have a
            memory, and without motion.
        has_logits (list[bool]): for every stream, whether its policy draws from logits.
        grid (BlockGrid): blocks to execute before streams have a memory.
        programs, dense_module_macs, may_improve: those of the :class:`SparseFrame` that ran last.
        count (Tensor or None): int32 (N,), detections of each image, known before the result; None
            if the StaticHeads do not know it earlier.
        result: result of the StaticHeads.
        macs (dict[str, int]): multiply-accumulates outside the block-sparse modules, of "heads" for
            all streams.
        policy_macs (list[int]): multiply-accumulates of the policy, for every stream.
    """

    def __init__(self, image, present, sizes, heads, *, asks, moves):
        """
        Args:
            image (Tensor): (N, 3, height, width), memory for the frames.
            present (Tensor or None): bool (N,), the streams that have a frame, read when frames are
                run; None: all, always.
            sizes (FrameSizes):
            heads (StaticHeads): heads of the model.
            asks (bool):
            moves (bool): whether the model has motion.
        """
        self.image, self.sizes, self.asks = image, sizes, asks
        self.frame = self.field = self.grid = self.count = self.result = None
        self.programs, self.dense_module_macs, self.may_improve = [], [], False
        self.has_logits, self.policy_macs = [False] * len(image), [0] * len(image)
        self.macs = {}
        self._present = present
        self._static_heads = heads
        self._result_copies = ResultCopies()
        self._observation = self._decisions = self._begun = self._kept = None
        self._normalized = self._arrival = self._outputs = self._features = None
        self._left_out = () if asks else ("policy",)
        self._left_out += () if moves else ("motion", "move_caches")
        self._warming = False
        self._functions, self._clocks, self._weights = {}, {}, []

    def run(self, part, model, streams, memory, timer):
        """
        Args:
            part (str): "infer", "finish" and "observe", one after the other.
            model (BlockCopyVideoModel):
            streams (StreamBatch): streams to update.
            memory (StreamMemory or None): bound to the streams; None on their first frame.
            timer (StageTimer): timer of the frame.
        """
        run = functools.partial(self._run_on_the_clock, part, model, streams, memory)
        if part in self._functions:
            self._functions[part](run)
        else:
            run()

    @property
    def is_captured(self):
        """bool: whether frames are replayed."""
        return bool(self._functions)

    def generators(self, model, streams):
        """
        Returns:
            list[torch.Generator]: those that frames draw from. Only policies do; streams that share
            one count once.
        """
        policies = dict.fromkeys(policies_of(model, streams)) if self.asks else ()
        return [x for policy in policies for x in policy.generators(self.image.device)]

    def _stages(self, part):
        return [stage for stage in _PARTS[part] if stage not in self._left_out]

    def _times(self, timer, part, times):
        """Counts the times of the stages of a part, from marks in ``times()``."""
        names = [_COUNTS_TO.get(stage, (stage,)) for stage in self._stages(part)]
        timer.add_times(names, times)

    def _run_stage(self, stage, *on):
        getattr(self, f"_{stage}")(*on)

    def _run_on_the_clock(self, part, *on):
        stages = self._stages(part)
        if part not in self._clocks:
            self._clocks[part] = clock_of(self.image.device, len(stages))
        clock = self._clocks[part]
        clock.mark(0)
        for index, stage in enumerate(stages, start=1):
            self._run_stage(stage, *on)
            clock.mark(index)
        if part == "finish":
            times = [self._clocks[name].times for name in ("infer", "finish")]
            self._result_copies.fill(self._static_heads.parts(self.result), times)
        elif part == "observe":
            self._keep(*on)

    def capture(self, model, streams, memory, pool):
        """
        Capture the frames in ``image``, and leave everything as if they had not been run. Does
        nothing if they are captured already, or on a device without CUDA graphs.

        Args:
            model, streams, memory: see :meth:`run`.
            pool (tuple): a handle from ``torch.cuda.graph_pool_handle()``.
        """
        if self._functions or not self.image.is_cuda:
            return
        generators = self.generators(model, streams)
        # Weights that are replaced stay in memory, since a replay may read them once more.
        self._weights = [x.detach() for x in (*model.base.parameters(), *model.base.buffers())]
        history = memory.tensors()
        before = [x.clone() for x in history], [x.get_state() for x in generators]
        functions, parts = {}, {}
        for name in _PARTS:
            functions[name] = CapturedFunction(
                generators=generators if name == "infer" else (), pool=pool
            )
            parts[name] = functools.partial(self._run_on_the_clock, name, model, streams, memory)
        self._warming = True
        for _ in range(_WARM_CALLS):
            for name, part in parts.items():
                functions[name](part)
            for tensor, value in zip(history, before[0], strict=True):
                tensor.copy_(value)
            for generator, state in zip(generators, before[1], strict=True):
                generator.set_state(state)
        self._warming = False
        for name, part in parts.items():
            functions[name].capture(part)
        self._functions = functions
        memory.bind(streams)

    def _preprocess(self, model, streams, memory):
        dtype = next(model.base.backbone.parameters()).dtype
        size = streams.canvas_size
        self._normalized, frame = prepare(model, self.image, size, dtype)
        if self.frame is None:
            # Results are read after other functions of the pool have run.
            self.frame = torch.empty_like(frame)
        self.frame.copy_(frame)
        self._arrival = look_at(model, self.frame, streams)

    def _motion(self, model, streams, memory):
        self._features = motion_features(model, self.image, streams)
        if memory is None:
            return
        on = (model, self._arrival, streams, self._features)
        self._arrival, self.field = estimate_motion(*on, present=self._present)
        streams.history = move_history(model, streams.history, self.field)

    def _policy(self, model, streams, memory):
        self._observation, self._decisions, self.grid = choose_blocks(
            model, self._arrival, streams, present=self._present
        )
        draws = [decision.logits is not None for decision in self._decisions]
        self.has_logits = draws * (len(self.image) // len(draws))
        pairs = zip(policies_of(model, streams), self._observation.split(), strict=True)
        self.policy_macs = [policy.macs(observation) for policy, observation in pairs]

    def _move_caches(self, model, streams, memory):
        if memory is not None:
            field = torch.zeros_like(self.field) if self._warming else self.field
            model.cache_mover(streams.features, self._executed(model, streams, memory), field)

    def _executed(self, model, streams, memory):
        """
        BlockGrid: the blocks to run, from the policies, from the memory, or those of a first frame.
            While a frame is warmed up nothing runs and no cache moves, so that caches stay those of
            the last one.
        """
        layout = {"block_size": model.block_size, "image_size": streams.canvas_size}
        if memory is not None and not self.asks:
            given, present = memory.given, self._present
            given = given if present is None else given & flags(present, given)
            self.grid = BlockGrid(given, **layout)
        if self._warming:
            return BlockGrid(torch.zeros_like(self.grid.active), **layout)
        return self.grid

    def _network(self, model, streams, memory):
        base, grid = model.base, self._executed(model, streams, memory)
        with (
            inference_autocast(model.device, model.amp),
            block_sparse(base, grid, streams.features) as work,
        ):
            self._outputs = self._static_heads.network(self._normalized)
        self.programs, self.dense_module_macs = work.programs, work.dense_module_macs
        self.may_improve = work.may_improve

    def _detect(self, model, streams, memory):
        inputs = (*self._outputs, self.sizes)
        if "heads" not in self.macs:
            self.macs["heads"] = count_macs(lambda: self._static_heads(*inputs))
        self.count, *self._begun = self._static_heads.begin(*inputs)

    def _heads(self, model, streams, memory):
        self.result = self._static_heads.finish(self.count, *self._begun)

    def _observe(self, model, streams, memory):
        before, output = streams.history, self._static_heads.parts(self.result)
        for name, part in output.items():
            if isinstance(part, StaticDetections):
                output[name] = part.of_policy(slice(None))
        arrival = self._arrival if self.asks else self._arrival.without_cuts()
        options = {"motion_features": self._features, "decisions": self._decisions}
        remember(model, streams, arrival, output, self.grid, **options)
        if memory is not None:
            memory.store(
                streams,
                before,
                present=self._present,
                cut=arrival.cut,
                observation=self._observation,
                decisions=self._decisions,
            )

    def _keep(self, model, streams, memory):
        # Their first frame has no memory to keep anything of.
        if memory is not None:
            kept = self._parts_to_keep(memory)
            if self._kept is None:
                self._kept = PackedCopies(kept)
            self._kept.fill(kept)

    def _parts_to_keep(self, memory):
        tensors = [self.grid.active, memory.drawn, memory.logits, memory.history.age]
        tensors += [memory.cut, memory.broken, *([] if self.field is None else [self.field])]
        return [*tensors, self._clocks["observe"].times]

    def take_result(self, timer):
        """
        Args:
            timer (StageTimer): timer of the frame.

        Returns:
            TakenResult: the result of the latest frames, which have been finished.
        """
        taken = self._result_copies.take(self._static_heads.parts(self.result))
        self._times(timer, "infer", lambda: taken.times(-2))
        self._times(timer, "finish", lambda: taken.times(-1))
        return taken

    def take(self, memory, timer):
        """
        Args:
            memory (StreamMemory): memory of the streams.
            timer (StageTimer): timer of the frame.

        Returns:
            TakenParts: parts of the latest frames, which have been observed.
        """
        if self._kept is None:
            copies = [x.clone() for x in self._parts_to_keep(memory)]
        else:
            copies = self._kept.take()
        self._times(timer, "observe", lambda: copies[-1])
        return TakenParts(copies)
