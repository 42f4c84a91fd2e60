"""The interface of a task, and the registry of tasks."""

from abc import ABC, abstractmethod
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from blockcopy_d2.motion import PolicyMotion

__all__ = ["TASK_REGISTRY", "Task", "takes_batches"]

TASK_REGISTRY = Registry("TASK")
TASK_REGISTRY.__doc__ = """
Registry for tasks: what the policy sees of an output, and how two outputs differ.

The registered object is called with `obj(cfg, base)`, a config with the keys of BlockCopy and the
task network, and must return a :class:`Task`.
"""


def takes_batches(method):
    """
    Marks a method of a :class:`Task` that also takes N streams at once. All tensors, including
    those of its result, then have one more dimension in front. Methods without the mark are called
    for one stream after the other, even if they override a method with the mark.

    Args:
        method (callable):

    Returns:
        callable: ``method``.
    """
    method.takes_batches = True
    return method


class Task(ABC):
    """
    Turns outputs of the task network into the policy's input, compares two of them, and moves an
    output with the picture. A task knows outputs alone: it does not know how frames are run, and
    keeps nothing of a stream.

    Shape shorthand of tasks:

        GH, GW: rows and columns of the block grid
        P: side of a block in policy pixels
        h, w: policy resolution, P GH x P GW
        K: classes
        n: detections of a frame

    Attributes:
        num_classes (int): K, the number of maps that the policy sees.
        pixels_per_block (int): P.
        capturable (bool): whether its methods may be part of a CUDA graph. They then never wait for
            the device, take "instances" as :class:`DetectionMasks`, and return a Tensor,
            DetectionMasks or a tuple of these as the view of an output. If not, frames are run
            operator by operator.
        moved_maps (str): one of ``blockcopy_d2.motion.MOVED_MAPS``, the feature maps worth moving
            with the picture on a CPU, see docs/motion.md; a GPU moves all.
    """

    capturable = False
    moved_maps = "outputs"

    @configurable
    def __init__(self, num_classes: int, pixels_per_block: int = 32):
        """
        Args:
            num_classes (int): K.
            pixels_per_block (int): P.
        """
        self.num_classes = num_classes
        self.pixels_per_block = pixels_per_block

    @classmethod
    def from_config(cls, cfg: CfgNode, base: nn.Module) -> dict[str, Any]:
        """
        Args:
            cfg (CfgNode):
            base (nn.Module): the meta-architecture of the task.

        Returns:
            dict[str, Any]: arguments of the task.
        """
        return {
            "num_classes": cls.count_classes(base),
            "pixels_per_block": cfg.MODEL.BLOCKCOPY.POLICY.PIXELS_PER_BLOCK,
        }

    @staticmethod
    def count_classes(base: nn.Module) -> int:
        """
        Args:
            base (nn.Module): the task network.

        Returns:
            int: K.

        Raises:
            ValueError: the number cannot be found.
        """
        raise NotImplementedError

    @abstractmethod
    def observe(
        self,
        output: dict,
        *,
        image_size: tuple[int, int],
        canvas_size: tuple[int, int],
        grid_shape: tuple[int, int],
    ) -> Any:
        """
        Args:
            output (dict): output of one frame, in Detectron2's format. Its "instances" may be
                DetectionMasks, which are at policy resolution already.
            image_size (tuple[int, int]): size of the network's input without its padding.
            canvas_size (tuple[int, int]): size of the network's input.
            grid_shape (tuple[int, int]): GH, GW.

        Returns:
            the view of the output that the other methods take: Tensor, DetectionMasks, or a tuple
            of these.
        """

    def part(self, output: dict, name: str) -> Any:
        """
        Args:
            output (dict): output of the task network.
            name (str): a key of it.

        Returns:
            the value under that key.

        Raises:
            ValueError: the task is not for outputs like this one.
        """
        if name not in output:
            raise ValueError(
                f"{type(self).__name__} is for outputs with {name!r}; this model's have"
                f" {', '.join(map(repr, output))}. Change MODEL.BLOCKCOPY.TASK, such as to 'auto'."
            )
        return output[name]

    @abstractmethod
    def move(self, seen: Any, motion: PolicyMotion) -> Any:
        """
        Args:
            seen: view of a frame, as :meth:`observe` returns it.
            motion (PolicyMotion): motion from that frame to the next.

        Returns:
            the view, moved to its place in the next frame.
        """

    @abstractmethod
    def paint(self, seen: Any) -> Tensor:
        """
        Args:
            seen: view of a frame, as :meth:`observe` returns it.

        Returns:
            Tensor: float (K, h, w) in [0, 1], the maps that the policy gets.
        """

    @abstractmethod
    def block_gain(self, current: Any, previous: Any, grid_shape: tuple[int, int]) -> Tensor:
        """
        Args:
            current, previous: views of two frames, as :meth:`observe` returns them.
            grid_shape (tuple[int, int]): GH, GW.

        Returns:
            Tensor: float (GH, GW), the information gain of every block, eq. 1.
        """
