"""The paper's policy, which is learned online.

Shape shorthand: N streams, GH x GW blocks.
"""

import torch
from detectron2.config import configurable

from blockcopy_d2.config import check_arguments
from blockcopy_d2.kernels import triton_runs_on

from .base import Decision, Policy, SeededUniform
from .build import POLICY_REGISTRY
from .network import INPUTS, PolicyNetwork
from .observation import PIXELS_PER_BLOCK

__all__ = ["LearnedPolicy"]


@POLICY_REGISTRY.register()
class LearnedPolicy(Policy):
    """
    Draws every block with the probability from the policy network (eq. 3), in learning and in
    evaluation. Taught by :class:`OnlineLearner`.
    """

    learns = capturable = True

    @configurable
    def __init__(
        self,
        *,
        num_classes,
        pixel_std=(1.0, 1.0, 1.0),
        pixels_per_block=PIXELS_PER_BLOCK,
        inputs=INPUTS,
        depth=8,
        center_inputs=False,
        count_steps=0,
        seed=0,
    ):
        """
        Args:
            num_classes (int): classes of the task network's output.
            pixel_std (sequence[float]): deviations of the task network's input normalization, see
                :class:`PolicyNetwork`.
            pixels_per_block (int): side of a block in policy pixels.
            inputs (sequence[str]): the maps that it sees, see :class:`PolicyNetwork`, also for the
                next two.
            depth (int): layers of the ResNet.
            center_inputs (bool): shift some of the maps.
            count_steps (int): steps in which the number of blocks may grow, see
                :func:`round_up_count`; 0 for any number.
            seed (int): seed of the draws.
        """
        super().__init__()
        options = {"pixels_per_block": pixels_per_block, "inputs": list(inputs), "depth": depth}
        options["center_inputs"] = center_inputs
        check_arguments("MODEL.BLOCKCOPY.POLICY", **options, count_steps=count_steps, seed=seed)
        self.count_steps = count_steps
        self.network = PolicyNetwork(num_classes=num_classes, pixel_std=pixel_std, **options)
        self._uniform = SeededUniform(seed)

    @classmethod
    def from_config(cls, cfg, num_classes):
        return {
            "num_classes": num_classes,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "pixels_per_block": cfg.MODEL.BLOCKCOPY.POLICY.PIXELS_PER_BLOCK,
            "inputs": cfg.MODEL.BLOCKCOPY.POLICY.INPUTS,
            "depth": cfg.MODEL.BLOCKCOPY.POLICY.DEPTH,
            "center_inputs": cfg.MODEL.BLOCKCOPY.POLICY.CENTER_INPUTS,
            "count_steps": cfg.MODEL.BLOCKCOPY.POLICY.COUNT_STEPS,
            "seed": cfg.MODEL.BLOCKCOPY.POLICY.SEED,
        }

    def generators(self, device):
        return [self._uniform.generator(device)]

    def forward(self, observation):
        """
        Args:
            observation (Observation): observation of N streams.

        Returns:
            Decision: the blocks that were drawn; all of them for a stream whose logits are not
            finite.
        """
        logits = self.network(observation)
        odds = logits.detach()
        if logits.is_cuda and logits.requires_grad:
            # Blocks are drawn in half precision in every frame, with or without gradients.
            odds = self.network.without_gradients(observation)
        uniform = self._uniform.draw(logits.shape, logits.device)
        active = draw(odds, uniform)
        if self.count_steps:
            order = self._uniform.draw(logits.shape, logits.device)
            active = round_up_count(active, order, self.count_steps)
        return Decision(active=active, logits=logits)


def draw(logits, uniform):
    """
    Args:
        logits (Tensor): float (N, GH, GW).
        uniform (Tensor): float (N, GH, GW), drawn from [0, 1).

    Returns:
        Tensor: bool (N, GH, GW), blocks whose uniform number is below their probability (eq. 3);
        all blocks of a stream whose logits are not all finite.
    """
    if triton_runs_on(logits.device):
        from .fused import draw

        return draw(logits, uniform)
    return draw_reference(logits, uniform)


def round_up_count(active, order, steps):
    """
    Adds blocks as the authors' code does, for which few counts of blocks mean few shapes of
    tensors: up to the next multiple of GH GW / ``steps``, rounded down. No block stays no block.

    Args:
        active (Tensor): bool (N, GH, GW).
        order (Tensor): float (N, GH, GW), within [0, 1); blocks of the smallest are added first.
        steps (int): at least 1.

    Returns:
        Tensor: bool (N, GH, GW).
    """
    count, step = active.flatten(1).sum(1), max(1, active[0].numel() // steps)
    missing = -count % step
    place = order.masked_fill(active, 1).flatten(1).argsort(dim=1).argsort(dim=1)
    return active | (place < missing[:, None]).view_as(active)


def draw_reference(logits, uniform):
    """:func:`draw` in plain PyTorch."""
    unusable = ~torch.isfinite(logits).flatten(1).all(1)
    return (uniform < logits.sigmoid()) | unusable[:, None, None]
