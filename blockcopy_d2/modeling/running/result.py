"""
What one frame of one stream gave.

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
from .timing import StageTimer

__all__ = ["FrameResult", "CapturedFrameResult"]


@dataclass(eq=False, repr=False)
class FrameResult(Mapping):
    """
    One frame's output, and how it came about. Reads as the output dict itself:
    ``result["instances"]`` is what Detectron2's ``DefaultPredictor`` gives.

    Attributes:
        output (dict): in Detectron2's format.
        frame (Tensor): float (1, 3, h, w), normalized, at policy resolution.
        observation (Observation or None): what the policy saw; None where it was not asked.
        decision (Decision or None): decision of the policy; its logits are None on a first frame,
            which executes all blocks unasked. None where the caller gave the grid.
        grid (BlockGrid): the executed blocks: those of the decision, those that were due for a
            refresh, and all of them on a first frame, after a cut, around a broken frame, and where
            a module that should run in blocks ran densely.
        age (Tensor): int32 (1, GH, GW), frames since each block was executed.
        work (SparseFrame): what the block-sparse modules executed, for all streams of the batch.
        detections, previous_detections: this output and the last one, moved along where there is
            motion, as :meth:`BlockCopyVideoModel.information_gain` compares them; the last is None
            on a first frame.
        cut (Tensor): bool scalar on the device; another scene than the last frame.
        broken (Tensor): bool scalar on the device; this frame or the last was not finite. Neither
            from a broken frame nor across a cut anything may be learned.
        timer (StageTimer): timer of all streams of the batch.
        is_first (bool): the first frame of its video.
        policy (Policy): policy of the stream.
        heads_macs (int): multiply-accumulates outside of policy and block-sparse modules, for all
            streams of the batch.
        field (Tensor or None): float32 (1, 2, FH, FW), where the content of each cell was one frame
            ago, see :mod:`blockcopy_d2.motion.field`; what is remembered was moved by it. None
            without motion, and where no stream of the batch has had a frame.
        gain (Tensor or None): float (1, GH, GW), information gain that each block had when it was
            last executed, negative where it is not known; None where the policy does not want it.
        learned (dict[str, Tensor]): what the learner told of the frame, see
            :meth:`OnlineLearner.learn`; empty where nothing was learned from it.
        scale (float or None): pixels of the network's input per pixel of the picture; None where
            that is not known, since a model was given the input itself.
        dropped (int): frames of a live source that passed between the last result and this one.
        time (float or None): seconds from the first frame of the video to when this one is shown;
            None where the source has no clock.
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
    time: float | None = None

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
        """int: multiply-accumulates of the policy, 0 where it was not asked."""
        return 0 if self.observation is None else self.policy.macs(self.observation)

    @property
    def macs_per_stage(self) -> dict[str, int]:
        """
        dict[str, int]: multiply-accumulates of "policy", "network" (the block-sparse modules) and
        "heads" (the rest of the task network), whichever way the frame was run. Of a batch: policy
        of this stream, the others of all streams. Waits for the device.
        """
        return {"policy": self.policy_macs, "network": self.macs, "heads": self.heads_macs}

    @property
    def dense_macs(self) -> int:
        """int: the same, as it would be with all blocks executed."""
        return self.work.dense_macs

    @property
    def seconds(self) -> dict[str, float]:
        """
        dict[str, float]: seconds spent in "preprocess", "policy", "network" (the block-sparse
        modules), "heads" (the rest of the task network) and "observe"; with motion also in
        "motion"; where the policy learned from the frame, also in "information_gain" and
        "policy_update". Waits for the device.
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
    Of a frame that was replayed as a graph, see :class:`FrameGraph`. The output is made when it is
    first read, at any time, which waits for the detections of the frame. ``frame``,
    ``observation``, ``detections``, ``previous_detections`` and ``gain`` lie in the memory of the
    graph, and so does what a ``decision`` to learn from is made of: they can be read until the next
    frame of the stream.
    """

    def __init__(
        self, graph, slot, *, readout, was_asked, learning, decision, policy_macs, **fields
    ):
        """
        Args:
            graph (FrameGraph): whose latest frame it is.
            slot (int): slot of its stream in the batch.
            readout (Readout): readout of the outputs of the batch.
            was_asked (bool): the policy.
            learning (bool): the decision is wanted in an autograd graph.
            decision (Decision or None): without an autograd graph.
            policy_macs (int): as of a :class:`FrameResult`.
            fields: the others of a :class:`FrameResult`.
        """
        # Results that are kept do not keep the memory of a stream.
        self._graph, self._number = weakref.ref(graph), graph.frames
        self._slot = slot
        self._readout, self._was_asked = readout, was_asked
        self._decision, self._learning = decision, learning
        self._policy_macs, self.learned = policy_macs, {}
        for name, value in fields.items():
            setattr(self, name, value)

    @functools.cached_property
    def output(self) -> dict[str, Any]:
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
        """int: multiply-accumulates of the policy, 0 where it was not asked."""
        return self._policy_macs

    @functools.cached_property
    def decision(self) -> Decision | None:
        if not self._learning or self._decision is None or self._decision.logits is None:
            return self._decision
        with torch.inference_mode(False), torch.enable_grad():
            return type(self._decision)(
                active=self._decision.active, logits=self.policy.network(self.observation)
            )

    def learn(
        self, model: nn.Module, learner: OnlineLearner, results: Sequence[FrameResult]
    ) -> dict[str, Tensor] | None:
        """
        Teach a policy frames of this one's tick, without a host in the loop.

        Args:
            model (BlockCopyVideoModel):
            learner (OnlineLearner): alone with the policy.
            results (sequence[FrameResult]): results of frames that the policy decided, this one
                among them.

        Returns:
            dict[str, Tensor] or None: as of :meth:`FrameGraph.learn`.
        """
        graph = self._latest()
        if any(not isinstance(x, CapturedFrameResult) or x._latest() is not graph for x in results):
            return None
        slots = [x._slot for x in results]
        return graph.learn(model, learner, self.policy, slots, self.timer)

    @property
    def was_drawn(self) -> bool:
        """bool: whether the policy drew the blocks from logits, and can learn from them."""
        return self._decision is not None and self._decision.logits is not None

    def _of_slot(self, part):
        return select_stream(part, slice(self._slot, self._slot + 1))

    def _latest(self):
        graph = self._graph()
        if graph is None or graph.frames != self._number:
            raise RuntimeError(
                "The memory of this frame's graph holds a later frame, or is gone with its stream."
                " Read frame, observation, detections and what is learned before the stream's next"
                " frame, or switch MODEL.BLOCKCOPY.CUDA_GRAPH off."
            )
        return graph
