"""The networks of the paper that Detectron2 does not have."""

from .csp import CSP
from .mgan import MGANROIHeads
from .swiftnet import SwiftNetBackbone, SwiftNetHead

__all__ = ["CSP", "MGANROIHeads", "SwiftNetBackbone", "SwiftNetHead"]
