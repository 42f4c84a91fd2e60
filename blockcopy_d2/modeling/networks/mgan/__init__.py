from .anchors import WholePixelAnchorGenerator
from .roi_heads import MaskAttention, MGANROIHeads, visible_masks
from .vgg import VGG16, build_vgg16_backbone

__all__ = [k for k in globals().keys() if not k.startswith("_")]
