"""CSP, a pedestrian detector without anchors: META_ARCHITECTURE "CSP"."""

from .checkpoint import CHECKPOINT
from .config import KEYS

__all__ = ["CHECKPOINT", "KEYS"]
