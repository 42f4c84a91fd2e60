"""Imports the modules of every network, which registers them with Detectron2."""

from .csp.backbone import build_csp_resnet_backbone
from .csp.meta_arch import CSP
from .mgan.anchors import WholePixelAnchorGenerator
from .mgan.roi_heads import MGANROIHeads
from .mgan.vgg import build_vgg16_backbone
from .swiftnet.backbone import SwiftNetBackbone
from .swiftnet.head import SwiftNetHead

__all__ = [
    "CSP",
    "MGANROIHeads",
    "SwiftNetBackbone",
    "SwiftNetHead",
    "WholePixelAnchorGenerator",
    "build_csp_resnet_backbone",
    "build_vgg16_backbone",
]
