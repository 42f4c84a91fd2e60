"""MGAN, a pedestrian detector in two stages: ROI_HEADS.NAME "MGANROIHeads", on VGG-16."""

from .checkpoint import CHECKPOINT
from .config import KEYS

__all__ = ["CHECKPOINT", "KEYS"]
