"""CSP, a pedestrian detector without anchors: META_ARCHITECTURE "CSP"."""

from .checkpoint import CHECKPOINTS
from .config import KEYS

__all__ = ["CHECKPOINTS", "KEYS"]
