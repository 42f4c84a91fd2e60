"""
The stages of a frame as functions of tensors that stay where they are, captured as CUDA graphs.

Shape shorthand: h x w policy resolution.
"""

import functools

import torch

from blockcopy_d2.kernels.graph import CapturedFunction
from blockcopy_d2.sparse import BlockGrid, block_sparse
from blockcopy_d2.sparse.macs import count_macs

from ..fixed_shape import StaticDetections
from .motion import estimate_motion, motion_features, move_history
from .precision import inference_autocast
from .steps import (
    at_policy_resolution,
    choose_blocks,
    find_cuts,
    normalize,
    policy_of,
    remember,
)

__all__ = ["FrameCapture"]

# What is a graph each, in stages, each of them a method. The output is read from behind the first
# graph, while the second one runs.
_PARTS = {
    "infer": ("preprocess", "motion", "policy", "move_caches", "network", "heads"),
    "observe": ("observe",),
}
# What a StageTimer counts the time of a stage to, where that is not its own name alone.
_COUNTS_TO = {
    "move_caches": ("motion",),
    "network": ("network", "inference"),
    "heads": ("inference",),
}
# Calls before a frame is captured, in which libraries choose, compile and allocate.
_WARM_CALLS = 2


class FrameCapture:
    """
    Frames of one kind, of one stream: of a size and type of image, with a policy that is asked or
    blocks that are given. Until they are captured, the stages run as they are.

    Attributes:
        image (Tensor): (3, height, width), where a frame is put before it is run.
        sizes (FrameSizes): of the frames.
        asks (bool): the policy, instead of executing the blocks that the memory gives.
        frame (Tensor): float (1, 3, h, w), the latest one.
        field (Tensor or None): float32 (1, 2, FH, FW), its motion; None on a stream's first frame,
            and without motion.
        decision (Decision or None): of the policy.
        grid (BlockGrid): to execute on a stream's first frame, which has no memory yet.
        programs, dense_module_macs, may_improve: of the :class:`SparseFrame` that ran last.
        result (StaticDetections or Tensor): of the StaticHeads.
        macs (dict[str, int]): multiply-accumulates outside the block-sparse modules, of "policy"
            and "heads".
    """

    def __init__(self, image, sizes, heads, *, asks, moves):
        """
        Args:
            image (Tensor): (3, height, width), where frames are put.
            sizes (FrameSizes):
            heads (StaticHeads): of the model.
            asks (bool):
            moves (bool): the model has motion.
        """
        self.image, self.sizes, self.asks = image, sizes, asks
        self.frame = self.field = self.decision = self.grid = self.result = None
        self.programs, self.dense_module_macs, self.may_improve = [], [], False
        self.macs = {"policy": 0}
        self._static_heads = heads
        self._images = self._cut = self._observation = self._outputs = self._features = None
        self._left_out = () if asks else ("policy",)
        self._left_out += () if moves else ("motion", "move_caches")
        self._warming = False
        self._functions, self._clocks = {}, {}

    def run(self, part, model, stream, memory, timer):
        """
        Args:
            part (str): "infer" or "observe", one after the other.
            model (BlockCopyVideoModel):
            stream (VideoStream): to bring up to date.
            memory (StreamMemory or None): bound to the stream; None on its first frame.
            timer (StageTimer): of the frame.
        """
        on = (model, stream, memory)
        if part in self._functions:
            self._functions[part](functools.partial(self._run_on_the_clock, part, *on))
            marks = self._clocks[part].marks()
        else:
            marks = [timer.now()]
            for stage in self._stages(part):
                self._run_stage(stage, *on)
                marks.append(timer.now())
        for stage, start, end in zip(self._stages(part), marks, marks[1:]):
            for name in _COUNTS_TO.get(stage, (stage,)):
                timer.add(name, start, end)

    def _stages(self, part):
        return [stage for stage in _PARTS[part] if stage not in self._left_out]

    def _run_stage(self, stage, *on):
        getattr(self, f"_{stage}")(*on)

    def _run_on_the_clock(self, part, *on):
        clock = self._clocks[part]
        clock.mark(0)
        for index, stage in enumerate(self._stages(part), start=1):
            self._run_stage(stage, *on)
            clock.mark(index)

    def capture(self, model, stream, memory, pool):
        """
        Capture the frame in ``image``, and leave everything as if it had not been run. Does nothing
        if that has been done, or where there are no CUDA graphs.

        Args:
            model, stream, memory: as of :meth:`run`.
            pool (tuple): of ``torch.cuda.graph_pool_handle()``.
        """
        if self._functions or not self.image.is_cuda:
            return
        from blockcopy_d2.kernels.clock import DeviceClock

        device = self.image.device
        # The policy is all that draws.
        generators = policy_of(model, stream).generators(device) if self.asks else []
        history = memory.tensors()
        before = [x.clone() for x in history], [x.get_state() for x in generators]
        functions, parts = {}, {}
        for name in _PARTS:
            self._clocks[name] = DeviceClock(len(self._stages(name)) + 1, device)
            functions[name] = CapturedFunction(
                generators=generators if name == "infer" else (), pool=pool
            )
            parts[name] = functools.partial(self._run_on_the_clock, name, model, stream, memory)
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
        memory.bind(stream)

    def _preprocess(self, model, stream, memory):
        self._images = normalize(model, [self.image])
        frame = at_policy_resolution(model, self._images)
        if self.frame is None:
            # Results are read after other functions of the pool have run.
            self.frame = torch.empty_like(frame)
        self.frame.copy_(frame)

        if self.asks:
            self._cut = find_cuts(model, self.frame, stream)

    def _motion(self, model, stream, memory):
        self._features = motion_features(model, [self.image], stream)
        if memory is None:
            return
        cut = self._cut if self.asks else find_cuts(model, self.frame, stream)
        self.field = estimate_motion(model, self.frame, stream, self._features, cut)
        stream.history = move_history(model, stream.history, self.field)

    def _policy(self, model, stream, memory):
        (self._observation,), (self.decision,), self.grid = choose_blocks(
            model, self.frame, stream, self._cut
        )
        policy = policy_of(model, stream)
        self.macs["policy"] = policy.macs(self._observation)

    def _move_caches(self, model, stream, memory):
        if memory is not None:
            field = torch.zeros_like(self.field) if self._warming else self.field
            model.cache_mover(stream.features, self._executed(model, stream, memory), field)

    def _executed(self, model, stream, memory):
        """
        BlockGrid: what runs; of the policy, of the memory, or of a stream's first frame. Nothing
        runs, and no cache moves, while a frame is warmed up: caches stay those of the last one.
        """
        layout = {"block_size": model.block_size, "image_size": stream.canvas_size}
        if memory is not None and not self.asks:
            self.grid = BlockGrid(memory.given, **layout)
        if self._warming:
            return BlockGrid(torch.zeros_like(self.grid.active), **layout)
        return self.grid

    def _network(self, model, stream, memory):
        base, grid = model.base, self._executed(model, stream, memory)
        dtype = next(base.backbone.parameters()).dtype
        with (
            inference_autocast(model.device, model.amp),
            block_sparse(base, grid, stream.features) as work,
        ):
            self._outputs = self._static_heads.network(self._images.tensor.to(dtype))
        self.programs, self.dense_module_macs = work.programs, work.dense_module_macs
        self.may_improve = work.may_improve

    def _heads(self, model, stream, memory):
        inputs = (*self._outputs, self.sizes)
        if "heads" not in self.macs:
            self.macs["heads"] = count_macs(lambda: self._static_heads(*inputs))
        self.result = self._static_heads(*inputs)

    def _observe(self, model, stream, memory):
        seen, before = self.result, stream.history
        if isinstance(seen, StaticDetections):
            seen = seen.of_policy()
        output = {self._static_heads.output_name: seen}
        features = {"motion_features": self._features}
        remember(model, stream, self.frame, [output], self.grid, **features)
        if memory is not None:
            memory.store(
                stream,
                before,
                cut=self._cut,
                observation=self._observation,
                decision=self.decision,
            )
