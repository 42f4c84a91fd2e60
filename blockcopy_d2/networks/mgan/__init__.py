"""MGAN, a pedestrian detector in two stages: ROI_HEADS.NAME "MGANROIHeads", on VGG-16."""

from .checkpoint import CHECKPOINTS
from .config import KEYS

__all__ = ["CHECKPOINTS", "KEYS"]
