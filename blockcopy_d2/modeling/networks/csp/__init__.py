from .backbone import ChannelL2Norm, CSPBackbone, build_csp_resnet_backbone
from .head import CSPHead
from .meta_arch import CSP, decode_boxes
from .targets import CenterTargets, center_targets

__all__ = [k for k in globals().keys() if not k.startswith("_")]
