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
            drawn from; None from policies that do not draw. Part of an autograd graph if the policy
            was called with gradients enabled; on CUDA they are then in single precision, where the
            draw used half.
        account (Tensor or None): float (N, 2), of a policy that executes more blocks in some frames
            than in others: the blocks that it has saved, and the price at which blocks run. It
            finds them in the next observation. None: the account stays as it is.
        evidence (Tensor or None): float (N, GH, GW), not negative, how far the gain of each block
            is evidence that something changed, see :class:`GainLearner`; None: all alike.
    """

    active: Tensor
    logits: Tensor | None = None
    account: Tensor | None = None
    evidence: Tensor | None = None

    def split(self) -> list["Decision"]:
        """
        Returns:
            list[Decision]: one for each stream, in the same autograd graph.
        """
        with torch.enable_grad():
            parts = (
                [None] * len(self.active) if x is None else x.split(1)
                for x in (self.active, self.logits, self.account, self.evidence)
            )
            return [Decision(*part) for part in zip(*parts, strict=True)]


class Policy(nn.Module, ABC):
    """Picks the blocks of a frame worth executing. It is not asked for a stream's first frame."""

    # Whether the policy learns, and the class that teaches it, built from a config and the policy.
    learns: bool = False
    learner_class: type[OnlineLearner] = OnlineLearner
    # Whether forward() is safe to capture in a CUDA graph: it does the same for any values, and
    # never waits for the device. If the policy learns, its logits come from a module ``network``.
    capturable: bool = False
    # Whether observations include the gain that each block had when it was last executed. Measuring
    # it takes time in every frame, even if nothing is learned.
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
            list[torch.Generator]: generators that it draws from on a device. A CUDA graph has to
            know them.
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

    def evidence(self, observation: Observation) -> Tensor | None:
        """
        Args:
            observation (Observation): observation of N streams.

        Returns:
            Tensor or None: see :class:`Decision`; None, unless a policy says otherwise.
        """
        return None

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
    Uniform random numbers that depend on a seed alone, on any device. They are not part of a state
    dict: a resumed run draws from the start again.
    """

    def __init__(self, seed):
        """
        Args:
            seed (int):
        """
        self.seed = seed
        self._generator = None

    def __deepcopy__(self, memo):
        # A copied torch.Generator would repeat the numbers of the original.
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
            torch.Generator: the source of this device's numbers. A CUDA graph has to know it.
        """
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device).manual_seed(self.seed)
        return self._generator
