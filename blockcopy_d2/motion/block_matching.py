"""Block matching: seven Triton launches on a GPU, plain PyTorch on a CPU."""

import torch
from detectron2.config import configurable

from blockcopy_d2.kernels import triton_runs_on
from blockcopy_d2.kernels.device import on_device

from .build import MOTION_REGISTRY, MotionEstimator
from .field import field_size
from .matching import keep_still, match

__all__ = ["BlockMatching"]


@MOTION_REGISTRY.register()
class BlockMatching(MotionEstimator):
    """Hierarchical block matching on half-resolution luma, see matching.py."""

    capturable = True

    @configurable
    def __init__(self, *, cell_size=8):
        super().__init__(cell_size=cell_size)

    @classmethod
    def from_config(cls, cfg):
        return {"cell_size": cfg.MODEL.BLOCKCOPY.MOTION.CELL_SIZE}

    def workspace(self, features):
        """
        Returns:
            list[Tensor]: int32 (N, 2, GH, GW), vectors of each level and costs of the finest.
        """
        return [
            torch.empty(
                len(level),
                2,
                *field_size(level.shape[1:], self.cell_size // 2),
                dtype=torch.int32,
                device=level.device,
            )
            for level in [*features.levels, features.levels[0]]
        ]

    def estimate(self, current, previous, *, out=None, workspace=None):
        out = self._output(current, previous, out)
        cell = self.cell_size // 2
        if triton_runs_on(out.device):
            from .triton_field import field_launch
            from .triton_search import search_launch

            *vectors, costs = self.workspace(current) if workspace is None else workspace
            with on_device(out.device):
                search_launch(current.levels, previous.levels, cell, vectors)
                field_launch(current.levels[0], previous.levels[0], cell, vectors[0], costs, out)
            return out
        field = match(current.levels, previous.levels, cell)
        # A pixel of the finest level is two of the input.
        keep_still(field, current.levels[0], previous.levels[0], cell)
        return torch.mul(field, 2, out=out)
