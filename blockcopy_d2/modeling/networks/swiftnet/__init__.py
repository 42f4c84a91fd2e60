"""SwiftNet for Detectron2's SemanticSegmentor: a backbone and a head."""

from .backbone import SwiftNetBackbone
from .head import SwiftNetHead

__all__ = ["SwiftNetBackbone", "SwiftNetHead"]
