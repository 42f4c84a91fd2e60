"""
Copies of the results of frames, which outlive the memory of their graph.

Shape shorthand in this module:

    N: streams of a batch
    GH, GW: rows and columns of the block grid
    FH, FW: rows and columns of cells of the motion field
"""

from dataclasses import replace

from blockcopy_d2.kernels.packing import PackedCopies

from ..fixed_shape import StaticDetections
from .history import map_tensors, tensors_of

__all__ = ["ResultCopies", "TakenParts", "TakenResult"]

_NAMES = ("executed", "drawn", "logits", "age", "cut", "broken", "field")


class ResultCopies:
    """
    Copies of the latest result of StaticHeads. Filling them is part of a graph; taking them out of
    there costs the host two copies, however many tensors there are.
    """

    def __init__(self):
        self._slots = self._whole = self._detections = None

    def fill(self, parts, times):
        """
        Args:
            parts (dict[str, StaticDetections or Tensor]): see :meth:`StaticHeads.parts`. Tensors,
                which may be large, are not copied here.
            times (sequence[Tensor]): marks of clocks, to be copied with the result.
        """
        found = (part for part in parts.values() if isinstance(part, StaticDetections))
        detections, slots = next(found, None), ()
        if detections is not None:
            # The policy has its masks before the next frame.
            self._detections = replace(detections, policy_masks=None)
            slots = detections.boxes, detections.scores, detections.classes
        tensors = [*slots, *times], list(tensors_of(self._detections))
        if self._slots is None:
            self._slots, self._whole = (PackedCopies(x) if x else None for x in tensors)
        for copies, originals in zip((self._slots, self._whole), tensors, strict=True):
            if copies is not None:
                copies.fill(originals)

    def take(self, parts):
        """
        Args:
            parts (dict[str, StaticDetections or Tensor]): those of the last call of :meth:`fill`.

        Returns:
            TakenResult: in memory of its own.
        """
        others = {
            name: None if isinstance(part, StaticDetections) else part.clone()
            for name, part in parts.items()
        }
        whole = None if self._whole is None else self._whole.take()
        return TakenResult(others, self._slots.take(), whole, self._detections)


class TakenResult:
    """
    The result of a frame. Detections are in two pieces of memory: Instances lie in one, and a
    change of them does not change their masks, which are pasted from the other.

    Attributes:
        parts (dict[str, Tensor or None]): parts of the result by name, None for its detections.
    """

    def __init__(self, parts, slots, whole, like):
        self.parts = parts
        self._slots, self._whole, self._like = slots, whole, like

    @property
    def has_detections(self):
        """bool: whether there are detections in slots."""
        return self._like is not None

    def slots(self):
        """
        Returns:
            tuple[Tensor, Tensor, Tensor]: boxes, scores and classes of all images.
        """
        return tuple(self._slots[index] for index in range(3))

    def detections(self):
        """
        Returns:
            StaticDetections: without the policy's masks.
        """
        copies = iter(self._whole)
        return map_tensors(lambda _: next(copies), self._like)

    def times(self, index):
        """
        Args:
            index (int): from the end.

        Returns:
            Tensor: int64, marks of a clock.
        """
        return self._slots[index]


class TakenParts(dict):
    """
    Parts of the frames of N streams by name, each made when it is first read: "executed", bool
    (N, GH, GW); "drawn", "logits", "cut" and "broken" of the StreamMemory; "age", int32
    (N, GH, GW); "field", float32 (N, 2, FH, FW), or None without motion.
    """

    def __init__(self, copies):
        """
        Args:
            copies (sequence[Tensor]): the parts in that order, without "field" if there is none,
                and the marks of a clock.
        """
        super().__init__()
        self._copies = copies

    def __missing__(self, name):
        index = _NAMES.index(name)
        self[name] = part = self._copies[index] if index < len(self._copies) - 1 else None
        return part
