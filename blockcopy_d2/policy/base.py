"""The interface of a policy.

Shape shorthand: N streams, GH x GW blocks.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from blockcopy_d2.sparse.macs import count_macs

from .observation import Observation
from .reinforce import OnlineLearner

__all__ = ["Decision", "Policy", "SeededUniform"]


@dataclass
class Decision:
    """
    The blocks to execute, A_t of the paper.

    Attributes:
        active (Tensor): bool (N, GH, GW).
        logits (Tensor or None): float (N, GH, GW), log-odds of execution that ``active`` was
            drawn from; None from policies that do not draw. Part of an autograd graph if the
            policy was called with gradients enabled, then on CUDA exact to single precision where
            the draw took half.
    """

    active: Tensor
    logits: Tensor | None = None

    def split(self) -> list["Decision"]:
        """
        Returns:
            list[Decision]: of each stream, in the same autograd graph.
        """
        with torch.enable_grad():
            logits = [None] * len(self.active) if self.logits is None else self.logits.split(1)
        return [Decision(*pair) for pair in zip(self.active.split(1), logits, strict=True)]


class Policy(nn.Module, ABC):
    """Picks the blocks of a frame worth executing. A stream's first frame runs without asking."""

    # Whether it can be improved, and the class that does; built from a config and the policy.
    learns: bool = False
    learner_class: type[OnlineLearner] = OnlineLearner
    # Whether forward() is safe to capture in a CUDA graph: it does the same whatever the numbers,
    # and never waits for the device. If the policy learns, it has its logits from a module
    # ``network``.
    capturable: bool = False
    # Whether observations have the gain that each block had when it was last executed. To measure
    # it takes time in every frame, also where nothing is learned.
    wants_gain: bool = False

    @classmethod
    def from_config(cls, cfg: CfgNode, num_classes: int) -> dict[str, Any]:
        """
        Args:
            cfg (CfgNode):
            num_classes (int): classes of the task network's output.

        Returns:
            dict[str, Any]: arguments of the policy.
        """
        return {}

    def generators(self, device: torch.device) -> list[torch.Generator]:
        """
        Args:
            device (torch.device):

        Returns:
            list[torch.Generator]: that it draws from on a device; a CUDA graph has to know them.
        """
        return []

    def macs(self, observation: Observation) -> int:
        """
        Returns the cost of a call. Counted once for every shape, by running the ``network``.

        Args:
            observation (Observation): observation of N streams.

        Returns:
            int: multiply-accumulates for all of them; 0 for a policy that does not learn.
        """
        if not self.learns:
            return 0
        shape = (*observation.frame.shape, observation.output.shape[1])
        known = self.__dict__.setdefault("_macs", {})
        if shape not in known:
            known[shape] = count_macs(lambda: self.network(observation))
        return known[shape]

    @abstractmethod
    def forward(self, observation: Observation) -> Decision:
        """
        Args:
            observation (Observation): observation of N streams.

        Returns:
            Decision:
        """


class SeededUniform:
    """
    Uniform random numbers that depend on nothing but a seed, on any device. They are not part of
    a state dict: a resumed run draws from the start again.
    """

    def __init__(self, seed):
        """
        Args:
            seed (int):
        """
        self.seed = seed
        self._generator = None

    def __deepcopy__(self, memo):
        # A copied torch.Generator of a state in use repeats itself.
        return SeededUniform(self.seed)

    def draw(self, shape, device):
        """
        Returns:
            Tensor: float of ``shape``, in [0, 1).
        """
        return torch.rand(shape, generator=self.generator(device), device=device)

    def generator(self, device):
        """
        Returns:
            torch.Generator: that the numbers of this device come from, which a CUDA graph has to
            know of.
        """
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device).manual_seed(self.seed)
        return self._generator
