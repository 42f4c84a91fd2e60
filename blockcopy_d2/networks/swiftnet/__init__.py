"""SwiftNet for Detectron2's SemanticSegmentor: a backbone and a head, of Detectron2's own keys."""

from .checkpoint import CHECKPOINT

__all__ = ["CHECKPOINT", "KEYS"]

KEYS = {}
