"""SwiftNet for Detectron2's SemanticSegmentor: a backbone and a head."""

from .checkpoint import CHECKPOINTS
from .config import KEYS

__all__ = ["CHECKPOINTS", "KEYS"]
