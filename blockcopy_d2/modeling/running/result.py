"""
The result of one frame of one stream.

Shape shorthand in this module:

    GH, GW: rows and columns of the block grid
    h, w: policy resolution
"""

import dataclasses
import functools
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from blockcopy_d2.policy import Decision, Observation, OnlineLearner, Policy
from blockcopy_d2.sparse import BlockGrid
from blockcopy_d2.sparse.module import SparseFrame

from .history import select_stream
from .region import BlockRegion
from .timing import StageTimer

__all__ = ["FrameClock", "FrameResult", "CapturedFrameResult"]


@dataclass(frozen=True)
class FrameClock:
    """
    The time at which a frame of a stream came, and the number of frames left out before it.

    Attributes:
        captured (float): when the frame had been received and decoded, in seconds since 1970.
        latency (float): seconds from then to when the result was handed out. On a GPU the frame may
            still be running then; reading its output waits for the rest.
        dropped (int): frames of a live source that came since the last result, while it was made.
        skipped (int): frames left out since the last result for the rate that was asked for.
        reconnects (int): times that a live source was lost and found again, so far. The first frame
            after a loss executes all blocks.
    """

    captured: float
    latency: float
    dropped: int
    skipped: int
    reconnects: int


@dataclass(eq=False, repr=False)
class FrameResult(Mapping):
    """
    The output of one frame, and how it was computed. It reads as the output dict itself:
    ``result["instances"]`` are those that Detectron2's ``DefaultPredictor`` returns.

    Attributes:
        output (dict): in Detectron2's format.
        frame (Tensor): float (1, 3, h, w), normalized, at policy resolution.
        observation (Observation or None): input of the policy; None if it was not asked.
        decision (Decision or None): decision of the policy; its logits are None on a first frame,
            which executes all blocks without asking it. None if the caller passed the grid.
        grid (BlockGrid): the executed blocks: those of the decision and those due for a refresh.
            All blocks on a first frame, after a cut, around a broken frame, and if a module that
            should run in blocks ran densely.
        age (Tensor): int32 (1, GH, GW), frames since each block was executed.
        work (SparseFrame): executed work of the block-sparse modules, for all streams of the batch.
        detections, previous_detections: this output and the last one, moved if there is motion, in
            the form that :meth:`BlockCopyVideoModel.information_gain` compares. The last one is
            None on a first frame.
        cut (Tensor): bool scalar on the device, whether the scene differs from that of the last
            frame.
        broken (Tensor): bool scalar on the device, whether this frame or the last one was not
            finite. Nothing is learned from broken frames, nor from frames after a cut.
        timer (StageTimer): timer of all streams of the batch.
        is_first (bool): whether it is the first frame of its video.
        policy (Policy): policy of the stream.
        heads_macs (int): multiply-accumulates outside policy and block-sparse modules, for all
            streams of the batch.
        field (Tensor or None): float32 (1, 2, FH, FW), where the content of each cell was one frame
            ago, see :mod:`blockcopy_d2.motion.field`. The history and features were moved by it.
            None without motion, and if no stream of the batch had a frame before.
        gain (Tensor or None): float (1, GH, GW), information gain that each block had when it was
            last executed, negative where it is not known; None if the policy does not want it.
        learned (dict[str, Tensor]): the learner's report on the frame, see
            :meth:`OnlineLearner.learn`; empty if nothing was learned from it.
        scale (float or None): pixels of the network's input per pixel of the picture; None if that
            is not known, since the model was called with the input itself.
        dropped (int): number of frames of a live source that were skipped between the last result
            and this one.
        region (BlockRegion or None): blocks that always or never run; None if the policy decides
            everywhere, or if that is not known, since the model was called with the input itself.
        time (float or None): seconds from the first frame of the video to when this one is shown;
            None where the source has no clock.
        clock (FrameClock or None): times of a frame of :meth:`VideoPredictor.stream`; None
            elsewhere.
    """

    output: dict
    frame: Tensor
    observation: Observation | None
    decision: Decision | None
    grid: BlockGrid
    age: Tensor
    work: SparseFrame
    detections: Any
    previous_detections: Any
    cut: Tensor
    broken: Tensor
    timer: StageTimer
    is_first: bool
    policy: Policy
    heads_macs: int
    field: Tensor | None = None
    gain: Tensor | None = None
    learned: dict = dataclasses.field(default_factory=dict)
    scale: float | None = None
    dropped: int = 0
    region: BlockRegion | None = None
    time: float | None = None
    clock: FrameClock | None = None

    @property
    def was_drawn(self) -> bool:
        """bool: whether the policy drew the blocks from logits, and can learn from them."""
        return self.decision is not None and self.decision.logits is not None

    @property
    def executed(self) -> float:
        """float: executed share of the blocks. Waits for the device."""
        return self.grid.fraction

    @property
    def macs(self) -> int:
        """
        int: multiply-accumulates of the block-sparse modules, for all streams of the batch. Waits
        for the device.
        """
        return self.work.macs

    @property
    def policy_macs(self) -> int:
        """int: multiply-accumulates of the policy, 0 if it was not asked."""
        return 0 if self.observation is None else self.policy.macs(self.observation)

    @property
    def macs_per_stage(self) -> dict[str, int]:
        """
        dict[str, int]: multiply-accumulates of "policy", "network" (the block-sparse modules) and
        "heads" (the rest of the task network). In a batch, "policy" is for this stream, the others
        for all streams. Waits for the device.
        """
        return {"policy": self.policy_macs, "network": self.macs, "heads": self.heads_macs}

    @property
    def dense_macs(self) -> int:
        """int: the ``macs`` that a frame with all blocks would take."""
        return self.work.dense_macs

    @property
    def seconds(self) -> dict[str, float]:
        """
        dict[str, float]: seconds spent in "preprocess", "policy", "network" (the block-sparse
        modules), "heads" (the rest of the task network) and "observe"; with motion also in
        "motion" (finding it) and "move_caches" (features); where the policy learned from the frame,
        also in "information_gain" and "policy_update". Waits for the device.
        """
        seconds = self.timer.seconds()
        network = seconds.setdefault("network", 0.0)
        seconds["heads"] = seconds.pop("inference") - network
        return seconds

    def __getitem__(self, key: str) -> Any:
        return self.output[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.output)

    def __len__(self) -> int:
        return len(self.output)


class CapturedFrameResult(FrameResult):
    """
    The result of a frame that was replayed as a graph, see :class:`FrameGraph`. The output is
    computed when it is first read, at any time; reading waits for the detections of the frame.
    ``frame``, ``observation``, ``detections``, ``previous_detections`` and ``gain`` lie in the
    memory of the graph, and so do the inputs of a ``decision`` to learn from. They can be read
    until the next frame of the stream.
    """

    def __init__(
        self,
        graph,
        slot,
        *,
        readout,
        kept,
        was_asked,
        was_drawn,
        was_given,
        learning,
        has_field,
        policy_macs,
        **fields,
    ):
        """
        Args:
            graph (FrameGraph): graph whose latest frame this is.
            slot (int): slot of its stream in the batch.
            readout (Readout): readout of the outputs of the batch.
            kept (TakenParts): parts of the frames of the batch.
            was_asked, was_drawn (bool): whether the policy was asked, and drew from logits.
            was_given (bool): whether the caller passed the grid.
            learning (bool): whether the decision is wanted in an autograd graph.
            has_field (bool): whether any stream of the batch had a frame before.
            policy_macs (int): see :class:`FrameResult`.
            fields: the fields of a :class:`FrameResult` that are not among the parts.
        """
        # Results that are kept must not keep the memory of a stream alive.
        self._graph, self._number = weakref.ref(graph), graph.frames
        self._slot = slot
        self._readout, self._kept = readout, kept
        self._was_asked, self._was_drawn, self._was_given = was_asked, was_drawn, was_given
        self._learning, self._has_field = learning, has_field
        self._policy_macs, self.learned = policy_macs, {}
        for name, value in fields.items():
            setattr(self, name, value)

    def __copy__(self):
        # The copy reads the same memory.
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        return other

    def __getstate__(self):
        raise TypeError(
            "The result of a frame belongs to the GPU's memory of its stream: pickle its"
            " output, dict(result)."
        )

    @functools.cached_property
    def output(self) -> Mapping[str, Any]:
        return self._readout.output(self._slot, self.timer)

    @property
    def frame(self) -> Tensor:
        return self._of_slot(self._latest().latest_frame)

    @property
    def observation(self) -> Observation | None:
        observation = self._latest().memory.observation()
        return self._of_slot(observation) if self._was_asked else None

    @property
    def detections(self) -> Any:
        return select_stream(self._latest().memory.seen, self._slot)

    @property
    def previous_detections(self) -> Any:
        last_seen = self._latest().memory.last_seen
        return None if self.is_first else select_stream(last_seen, self._slot)

    @property
    def gain(self) -> Tensor | None:
        gain = self._latest().memory.history.gain
        return self._of_slot(gain) if self.policy.wants_gain else None

    @property
    def policy_macs(self) -> int:
        """int: multiply-accumulates of the policy, 0 if it was not asked."""
        return self._policy_macs

    @functools.cached_property
    def grid(self) -> BlockGrid:
        of_all = self.work.grid
        layout = {"block_size": of_all.block_size, "image_size": of_all.image_size}
        return BlockGrid(self._part("executed"), **layout)

    @functools.cached_property
    def age(self) -> Tensor:
        return self._part("age")

    @functools.cached_property
    def cut(self) -> Tensor:
        return self._kept["cut"][self._slot]

    @functools.cached_property
    def broken(self) -> Tensor:
        return self._kept["broken"][self._slot]

    @functools.cached_property
    def field(self) -> Tensor | None:
        return self._part("field") if self._has_field else None

    @functools.cached_property
    def decision(self) -> Decision | None:
        if not self._was_asked:
            return None if self._was_given else Decision(active=self._part("executed"))
        active = self._part("drawn")
        if not self._was_drawn:
            return Decision(active=active)
        if not self._learning:
            return Decision(active=active, logits=self._part("logits"))
        with torch.inference_mode(False), torch.enable_grad():
            evidence = self.policy.evidence(self.observation)
            logits = self.policy.network(self.observation)
            return Decision(active=active, logits=logits, evidence=evidence)

    def _part(self, name):
        part = self._kept[name]
        return None if part is None else part[self._slot : self._slot + 1]

    def learn(
        self, model: nn.Module, learner: OnlineLearner, results: Sequence[FrameResult]
    ) -> dict[str, Tensor] | None:
        """
        Teach a policy from frames of the same tick, without a host in the loop.

        Args:
            model (BlockCopyVideoModel):
            learner (OnlineLearner): alone with the policy.
            results (sequence[FrameResult]): results of frames that the policy decided, this one
                among them.

        Returns:
            dict[str, Tensor] or None: see :meth:`FrameGraph.learn`.
        """
        graph = self._latest()
        if any(not isinstance(x, CapturedFrameResult) or x._latest() is not graph for x in results):
            return None
        slots = [x._slot for x in results]
        return graph.learn(model, learner, self.policy, slots, self.timer)

    @property
    def was_drawn(self) -> bool:
        """bool: whether the policy drew the blocks from logits, and can learn from them."""
        return self._was_drawn

    def _of_slot(self, part):
        return select_stream(part, slice(self._slot, self._slot + 1))

    def _latest(self):
        graph = self._graph()
        if graph is None or graph.frames != self._number:
            raise RuntimeError(
                "The memory of this frame's graph holds a later frame, or is gone with its stream."
                " Read frame, observation and detections, and learn from the result, before the"
                " stream's next frame, or switch MODEL.BLOCKCOPY.CUDA_GRAPH off."
            )
        return graph
