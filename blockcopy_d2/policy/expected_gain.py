"""
A policy that predicts the gain of every block and holds its budget exactly.

Shape shorthand in this module:

    N: streams
    GH, GW: rows and columns of the block grid
    F: features of a block
"""

import torch
from detectron2.config import configurable
from torch import nn

from blockcopy_d2.config import check_arguments
from blockcopy_d2.kernels import triton_runs_on

from .base import Decision, Policy
from .block_features import FEATURES, block_features, block_values
from .block_means import block_means
from .build import POLICY_REGISTRY
from .gain_constants import (
    AGE_POWER,
    LEVEL_FLOOR,
    LONG_WAIT,
    MOST_SAVED,
    OVERDUE_POWER,
    PRICE_PULL,
    PRICE_RATE,
    SAVING_FRAMES,
    VARIANCE_FLOOR,
)
from .gain_learner import GainLearner
from .network import NATURAL_PIXEL_STD

__all__ = ["ExpectedGain", "GainNetwork", "largest_blocks", "weight_of_age"]


class GainNetwork(nn.Module):
    """
    Predicts the logarithm of each block's information gain, up to a constant of the frame, as a
    weighted sum of :data:`FEATURES`. The weights are those that fit any model, plus a
    ``correction`` that is learned, in units of the features' deviations over blocks, so that all of
    them change the prediction alike. The deviation of the prediction over the blocks of a frame
    stays as it is without the correction: a larger one predicts gains better, but weighted by ages
    it sends the policy back to the same blocks too soon. So a correction changes the order of
    blocks alone.
    """

    def __init__(self, *, pixel_std=(1.0, 1.0, 1.0)):
        """
        Args:
            pixel_std (sequence[float]): see :class:`PolicyNetwork`.
        """
        super().__init__()
        scale = torch.tensor(pixel_std, dtype=torch.float32) / NATURAL_PIXEL_STD
        self.register_buffer("pixel_scale", scale, persistent=False)
        constants = torch.tensor(list(FEATURES.values())).unbind(dim=1)
        for name, constant in zip(("prior", "floors", "deviations"), constants, strict=True):
            self.register_buffer(name, constant.clone(), persistent=False)
        self.correction = nn.Parameter(torch.zeros(len(FEATURES)))

    def forward(self, observation):
        """
        Args:
            observation (Observation): observation of N streams, with the gains of blocks.

        Returns:
            Tensor: float (N, GH, GW).
        """
        features = block_features(observation, self.pixel_scale, self.floors)
        uncorrected = _weighted(features, self.prior)
        weights = self.prior + self.correction / self.deviations
        return _as_spread(_weighted(features, weights), uncorrected)

    def level(self, observation):
        """
        Returns how much is expected of a frame as a whole, for one to be compared with others of
        its stream.

        Args:
            observation (Observation): see :meth:`forward`.

        Returns:
            Tensor: float (N,), the logarithm in a unit of the stream.
        """
        means = block_values(observation, self.pixel_scale).mean(dim=(2, 3))
        return means.clamp_min(LEVEL_FLOOR).log() @ self.prior


def _weighted(features, weights):
    return (features * weights.view(1, -1, 1, 1)).sum(dim=1)


def _as_spread(x, like):
    """
    Scales maps (N, GH, GW) so that their deviations over the blocks are those of others, and at
    most twice as large as before.
    """
    variance, wanted = (m.var(dim=(1, 2), correction=0, keepdim=True) for m in (x, like))
    variance = torch.maximum(variance, wanted / 4)
    return x * ((wanted + VARIANCE_FLOOR) / (variance + VARIANCE_FLOOR)).sqrt()


@POLICY_REGISTRY.register()
class ExpectedGain(Policy):
    """
    Executes the blocks of largest expected gain, weighted by age, as many as the budget allows.

    An executed block becomes wrong again, and sooner if its content changes fast. If errors grow
    evenly with the frames since blocks were executed, or by any other power of them, the order of
    gain times age has the least mean error (the index of a restless bandit, Whittle 1988): a block
    that changes fast is wrong again after a frame, one that changes slowly stays right for long.
    See :func:`weight_of_age` for the power of age: features say part of it.
    Every block is executed in the end, and exploration never stops.

    The number of blocks is exact: over any frames in a row it is tau of all their blocks, up to
    one. With a ``burst`` above 1, frames in which more changes execute more blocks, and quiet ones
    fewer, see :func:`pace`; over any frames in a row it is tau of all their blocks, up to the
    blocks of two frames, and from the start on up to 0.02. Taught by :class:`GainLearner`; before
    it has learned anything it uses weights that fit any model.
    """

    learns = True
    capturable = True
    wants_gain = True
    learner_class = GainLearner

    @configurable
    def __init__(self, *, target, pixel_std=(1.0, 1.0, 1.0), burst=1.0):
        """
        Args:
            target (float): tau, the fraction of the blocks of a frame.
            pixel_std (sequence[float]): deviations of the task network's input normalization.
            burst (float): the most that a frame may execute, in multiples of the target; at
                least 1.
        """
        super().__init__()
        check_arguments("MODEL.BLOCKCOPY.POLICY", burst=burst)
        self.burst = float(burst)
        self.network = GainNetwork(pixel_std=pixel_std)
        # A captured graph reads the target from here.
        target_on_device = torch.zeros((), dtype=torch.float64)
        self.register_buffer("_target_on_device", target_on_device, persistent=False)
        self.target = target

    @classmethod
    def from_config(cls, cfg, num_classes):
        options = cfg.MODEL.BLOCKCOPY
        return {
            "target": options.TARGET,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "burst": options.POLICY.BURST,
        }

    @property
    def target(self):
        """float: tau. May be changed at any time."""
        return self._target

    @target.setter
    def target(self, value):
        check_arguments(target=value)
        self._target = float(value)
        self._target_on_device.fill_(self._target)

    def forward(self, observation):
        """
        Args:
            observation (Observation): observation of N streams, with age and gain of blocks.

        Returns:
            Decision: its logits are logarithms of expected gains. With gradients enabled it has
            evidence.
        """
        target = self._target_on_device
        logits, active, account = choose_blocks(observation, self.network, target, self.burst)
        evidence = self.evidence(observation) if torch.is_grad_enabled() else None
        return Decision(active, logits, account, evidence)

    @torch.no_grad()
    def evidence(self, observation):
        """
        Returns:
            Tensor: float (N, GH, GW), the mean difference to the picture last executed, in which a
            detector's noise has no part.
        """
        grid_shape = observation.grid.shape[2:]
        maps = (observation.frame, observation.frame_state, observation.output)
        means = block_means(*maps, self.network.pixel_scale, grid_shape)
        return means[:, list(FEATURES).index("difference")]


def choose_blocks(observation, network, target, burst=1.0):
    """
    Args:
        observation (Observation): observation of N streams, with age and gain of blocks; and with
            the account for a burst above 1.
        network (GainNetwork):
        target (Tensor): float64 scalar, fraction of the blocks.
        burst (float): the most that a frame may execute, in multiples of the target.

    Returns:
        tuple[Tensor, Tensor, Tensor or None]: float (N, GH, GW), logarithms of expected gains; bool
        (N, GH, GW), the blocks of largest expected gain, weighted by age, see
        :func:`weight_of_age` and :func:`largest_blocks`; and float (N, 2), the next account, see
        :func:`pace`, None if there is no burst.
    """
    if triton_runs_on(observation.frame.device):
        from .choice_kernels import MOST_BLOCKS, choose_triton

        if observation.age[0].numel() <= MOST_BLOCKS:
            logits, *choice = choose_triton(observation, network, target, burst)
            # In an autograd graph if one is wanted; the choice is the same either way.
            return network(observation) if torch.is_grad_enabled() else logits, *choice
    return choose_blocks_reference(observation, network, target, burst)


def choose_blocks_reference(observation, network, target, burst=1.0):
    """:func:`choose_blocks` in plain PyTorch."""
    logits = network(observation)
    score = logits.detach() + weight_of_age(observation.age, target)
    index = observation.frame_numbers()
    region = observation.region
    if burst == 1:
        return logits, largest_blocks(score, target, index, region), None
    usable = torch.isfinite(score).flatten(1).all(dim=1)
    score, level = score if region is None else score + region, network.level(observation).detach()
    counts, account = pace(score, level, observation.account, target, index, burst)
    account = torch.where(usable[:, None], account, observation.account)
    return logits, _largest(score, counts) | ~usable.view(-1, 1, 1), account


def weight_of_age(age, target):
    """
    Args:
        age (Tensor): int (N, GH, GW), see :class:`Observation`.
        target (Tensor): float64 scalar, fraction of the blocks.

    Returns:
        Tensor: float (N, GH, GW), to add to logarithms of expected gains: the logarithm of the
        frames since each block was executed to the power of AGE_POWER, and beyond a long wait to
        that of AGE_POWER + OVERDUE_POWER.
    """
    waited = (age + 1).float()
    overdue = (waited * (target.float() / LONG_WAIT)).clamp_min(1)
    return AGE_POWER * waited.log() + OVERDUE_POWER * overdue.log()


def largest_blocks(score, target, index, region=None):
    """
    Args:
        score (Tensor): float (N, GH, GW).
        target (Tensor): float64 scalar, fraction of the blocks.
        index (Tensor): int (N,) or (1,), number of the frame in each stream.
        region (Tensor or None): float (N, GH, GW), see :class:`Observation`: blocks that always run
            come first, those that never do come last.

    Returns:
        Tensor: bool (N, GH, GW), the blocks of largest score; all blocks of a stream whose scores
        are not finite. Their number is rounded so that it is right over any frames in a row.
    """
    counts = _even_counts(target, score[0].numel(), index)
    unusable = ~torch.isfinite(score.flatten(1)).all(dim=1).view(-1, 1, 1)
    return _largest(score if region is None else score + region, counts) | unusable


def pace(score, level, account, target, index, burst):
    """
    Finds the number of blocks of a frame by a price: blocks run that are worth more. It is at most
    ``burst`` times the target and at least the target over ``burst``, rounded to whole blocks, and
    never is more than a share of MOST_SAVED of the blocks of all frames saved or owed, counted
    since the start of the stream and over at most SAVING_FRAMES: the blocks of one frame; or half a
    block, if that is more. The first frame of a stream executes its target, and its price is that
    of its last block.

    Args:
        score (Tensor): float (N, GH, GW), logarithms of the worth of blocks; infinite for those
            that always run, minus infinite for those that never do.
        level (Tensor): float (N,), to add to them, so that frames of a stream can be compared.
        account (Tensor): float (N, 2), the blocks saved so far, and the price.
        target (Tensor): float64 scalar, fraction of the blocks.
        index (Tensor): int (N,) or (1,), number of the frame in each stream.
        burst (float): above 1.

    Returns:
        tuple[Tensor, Tensor]: (N,), the numbers of blocks; and float (N, 2), the next account.
    """
    blocks, worth = score[0].numel(), score.flatten(1) + level[:, None]
    is_new = index.expand(len(score)) <= 1
    wanted = (target * blocks).float()
    saved, price = torch.where(is_new[:, None], 0.0, account).unbind(1)
    worthy = (worth > price[:, None]).sum(dim=1).float()
    reach = (MOST_SAVED * blocks * index.clamp(max=SAVING_FRAMES).float()).clamp_min(0.5)
    least = torch.maximum((wanted / burst).floor(), (wanted + saved - reach).ceil())
    most = torch.minimum((wanted * burst).ceil(), (wanted + saved + reach).floor())
    counts = worthy.clamp(least, most)
    even = _even_counts(target, blocks, index).float()
    counts = torch.where(is_new, even, counts).clamp(0, blocks)
    last = (even.long() - 1).clamp_min(0).expand(len(score))[:, None]
    first_price = worth.sort(dim=1, descending=True).values.gather(1, last)[:, 0]
    first_price = torch.where(first_price.isfinite(), first_price, level)
    saved = saved + wanted - counts
    step = PRICE_RATE * ((worthy + 1) / (wanted + 1)).log() - PRICE_PULL * saved / blocks
    return counts, torch.stack([saved, torch.where(is_new, first_price, price + step)], dim=1)


def _even_counts(target, blocks, index):
    """Numbers of blocks of frames, rounded so that they are right over any frames in a row."""
    blocks = target * blocks
    # Rounding errors of a product such as 0.29 x 100 must not cost a block.
    return (blocks * (index + 1) + 1e-6).floor() - (blocks * index + 1e-6).floor()


def _largest(score, counts):
    """bool (N, GH, GW), so many blocks (N,) or (1,) of each stream, those of largest score."""
    flat = score.flatten(1)
    order = flat.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(flat.shape[1], device=flat.device).expand_as(order))
    return (rank < counts[:, None]).view(score.shape)
