"""
What one frame of one stream gave.

Shape shorthand in this module:

    GH, GW: rows and columns of the block grid
    h, w: policy resolution
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from blockcopy_d2.policy import Decision, Observation
from blockcopy_d2.sparse import BlockGrid
from blockcopy_d2.sparse.module import SparseFrame

from .timing import StageTimer

__all__ = ["FrameResult"]


@dataclass(eq=False)
class FrameResult(Mapping):
    """
    One frame's output, and how it came about. Reads as the output dict itself:
    ``result["instances"]`` is what Detectron2's ``DefaultPredictor`` gives.

    Attributes:
        output (dict): in Detectron2's format.
        frame (Tensor): float (1, 3, h, w), normalized, at policy resolution.
        observation (Observation or None): what the policy saw; None where it was not asked.
        decision (Decision or None): of the policy; its logits are None on a first frame, which
            executes all blocks unasked. None where the caller gave the grid.
        grid (BlockGrid): the executed blocks: those of the decision, those that were due for a
            refresh, and all of them on a first frame, after a cut and around a broken frame.
        age (Tensor): int32 (1, GH, GW), frames since each block was executed.
        work (SparseFrame): what the block-sparse modules executed, for all streams of the batch.
        detections, previous_detections: this output and the last one, as
            :meth:`BlockCopyVideoModel.information_gain` compares them; the last is None on a
            first frame.
        cut (Tensor): bool scalar on the device; another scene than the last frame.
        broken (Tensor): bool scalar on the device; this frame or the last was not finite. Neither
            from a broken frame nor across a cut anything may be learned.
        timer (StageTimer): of all streams of the batch.
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

    @property
    def is_first(self):
        """bool: the first frame of its video."""
        return self.previous_detections is None

    @property
    def executed(self):
        """float: executed share of the blocks. Waits for the device."""
        return self.grid.fraction

    @property
    def macs(self):
        """
        int: multiply-accumulates of the block-sparse modules, for all streams of the batch. Waits
        for the device.
        """
        return self.work.macs

    @property
    def dense_macs(self):
        """int: the same, as it would be with all blocks executed."""
        return self.work.dense_macs

    @property
    def seconds(self):
        """
        dict[str, float]: seconds spent in "preprocess", "policy", "network" (the block-sparse
        modules), "heads" (the rest of the task network) and "observe"; where the policy learned
        from the frame, also "information_gain" and "policy_update". Waits for the device.
        """
        seconds = self.timer.seconds()
        network = seconds.setdefault("network", 0.0)
        seconds["heads"] = seconds.pop("inference") - network
        return seconds

    def __getitem__(self, key):
        return self.output[key]

    def __iter__(self):
        return iter(self.output)

    def __len__(self):
        return len(self.output)
