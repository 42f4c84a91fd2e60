"""
Baselines: policies that do not learn.

Shape shorthand in this module:

    N: streams
    GH, GW: rows and columns of the block grid
    P: side of a block in policy pixels
    h, w: policy resolution, P GH x P GW
"""

import torch
from detectron2.config import configurable
from torch.nn import functional as F

from blockcopy_d2.config import check_arguments

from .base import Decision, Policy, SeededUniform
from .build import POLICY_REGISTRY
from .expected_gain import largest_blocks

__all__ = [
    "AllBlocks",
    "EveryKthFrame",
    "FrameDifference",
    "MovedDifference",
    "NoBlocks",
    "RandomBlocks",
]


@POLICY_REGISTRY.register()
class AllBlocks(Policy):
    """Executes every block: the task network as it is."""

    capturable = True

    @configurable
    def __init__(self):
        super().__init__()

    def forward(self, observation):
        return _same_everywhere(observation, True)


@POLICY_REGISTRY.register()
class NoBlocks(Policy):
    """Executes nothing: the output of a stream's first frame stays."""

    capturable = True

    @configurable
    def __init__(self):
        super().__init__()

    def forward(self, observation):
        return _same_everywhere(observation, False)


@POLICY_REGISTRY.register()
class RandomBlocks(Policy):
    """Executes each block with the same probability, independently."""

    capturable = True

    @configurable
    def __init__(self, *, target, seed=0):
        """
        Args:
            target (float): tau, the probability.
            seed (int): seed of the draws.
        """
        super().__init__()
        check_arguments(target=target)
        check_arguments("MODEL.BLOCKCOPY.POLICY", seed=seed)
        self.target = target
        self._uniform = SeededUniform(seed)

    @classmethod
    def from_config(cls, cfg, num_classes):
        options = cfg.MODEL.BLOCKCOPY
        return {"target": options.TARGET, "seed": options.POLICY.SEED}

    def generators(self, device):
        return [self._uniform.generator(device)]

    def forward(self, observation):
        grid = observation.grid[:, 0]
        probability = self.target
        if observation.region is not None:
            probability = _probability_at_will(self.target, observation.region)
        return Decision(active=self._uniform.draw(grid.shape, grid.device) < probability)


@POLICY_REGISTRY.register()
class FrameDifference(Policy):
    """Executes the blocks whose pixels differ most from when they were last executed."""

    capturable = True

    @configurable
    def __init__(self, *, target):
        """
        Args:
            target (float): tau, the fraction of the blocks. Their numbers are rounded so that it is
                right over any frames in a row.
        """
        super().__init__()
        check_arguments(target=target)
        self.target = target

    @classmethod
    def from_config(cls, cfg, num_classes):
        return {"target": cfg.MODEL.BLOCKCOPY.TARGET}

    def score(self, observation):
        """
        Returns:
            Tensor: float (N, GH, GW), how much a block is worth executing.
        """
        difference = (observation.frame - observation.frame_state).abs().mean(dim=1, keepdim=True)
        return F.adaptive_avg_pool2d(difference, observation.grid.shape[2:])[:, 0]

    def forward(self, observation):
        score = self.score(observation)
        index = observation.frame_numbers()
        # Filled on the device: a CUDA graph cannot copy it from the host.
        target = torch.full((), self.target, dtype=torch.float64, device=score.device)
        return Decision(active=largest_blocks(score, target, index, observation.region))


@POLICY_REGISTRY.register()
class MovedDifference(FrameDifference):
    """
    :class:`FrameDifference` for models with motion. Their frame state moves with the picture, so
    the difference is what motion does not explain. Blocks gain weight with their age.
    """

    @configurable
    def __init__(self, *, target, age_weight=0.05):
        """
        Args:
            target (float): see :class:`FrameDifference`.
            age_weight (float): the difference counts 1 + ``age_weight`` times the frames since a
                block was executed.
        """
        super().__init__(target=target)
        check_arguments("MODEL.BLOCKCOPY.POLICY", age_weight=age_weight)
        self.age_weight = age_weight

    @classmethod
    def from_config(cls, cfg, num_classes):
        options = cfg.MODEL.BLOCKCOPY
        return {"target": options.TARGET, "age_weight": options.POLICY.AGE_WEIGHT}

    def score(self, observation):
        difference = super().score(observation)
        if not self.age_weight:
            return difference
        return difference * (1 + self.age_weight * (observation.age + 1))


@POLICY_REGISTRY.register()
class EveryKthFrame(Policy):
    """
    Executes every block of each k-th frame of a stream and none between: a lower frame rate. The
    first frame is executed in any case.
    """

    capturable = True

    @configurable
    def __init__(self, *, period, phase=0):
        """
        Args:
            period (int): k, at least 1.
            phase (int): number of a frame that is executed.
        """
        super().__init__()
        check_arguments("MODEL.BLOCKCOPY.POLICY", period=period, phase=phase)
        self.period, self.phase = period, phase

    @classmethod
    def from_config(cls, cfg, num_classes):
        options = cfg.MODEL.BLOCKCOPY.POLICY
        return {"period": options.PERIOD, "phase": options.PHASE}

    def forward(self, observation):
        grid = observation.grid[:, 0]
        executed = (observation.frame_numbers() - self.phase) % self.period == 0
        return Decision(active=executed.view(-1, 1, 1).expand(grid.shape))


def _probability_at_will(target, region):
    """
    Returns:
        Tensor: float (N, 1, 1), probability of the blocks that the policy may choose, so that with
        those that always run the target is met. Exactly the target where it may choose all.
    """
    at_will = (region == 0).sum(dim=(1, 2), keepdim=True)
    always = (region > 0).sum(dim=(1, 2), keepdim=True)
    missing = target * (region[0].numel() - at_will) - always
    return target + missing / at_will.clamp_min(1)


def _same_everywhere(observation, execute):
    return Decision(active=torch.full_like(observation.grid[:, 0], execute, dtype=torch.bool))
