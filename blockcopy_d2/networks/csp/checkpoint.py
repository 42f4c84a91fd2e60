"""Pedestron's CSP with ResNet-50 (``configs/elephant/cityperson/csp_r50.py`` there)."""

from ..mapping import Mapping
from ..resnet_names import torchvision_resnet_names

__all__ = ["CHECKPOINTS"]

_PEDESTRON = Mapping(
    source="Pedestron's CSP",
    config_file="CityPersons/csp_R_50.yaml",
    names=(
        *torchvision_resnet_names("backbone.bottom_up.", "backbone."),
        (r"backbone\.res3_norm\.weight", "neck.p3_l2.weight"),
        (r"backbone\.res4_norm\.weight", "neck.p4_l2.weight"),
        (r"backbone\.res5_norm\.weight", "neck.p5_l2.weight"),
        (r"backbone\.res(\d)_up\.(\w+)", r"neck.p\1.\2"),
        (r"head\.center\.conv\.norm\.(\w+)", r"bbox_head.cls_convs.0.gn.\1"),
        (r"head\.center\.conv\.weight", "bbox_head.cls_convs.0.conv.weight"),
        (r"head\.center\.predictor\.(\w+)", r"bbox_head.csp_cls.\1"),
        (r"head\.height\.conv\.norm\.(\w+)", r"bbox_head.reg_convs.0.gn.\1"),
        (r"head\.height\.conv\.weight", "bbox_head.reg_convs.0.conv.weight"),
        (r"head\.height\.predictor\.(\w+)", r"bbox_head.csp_reg.\1"),
        (r"head\.height_scale", "bbox_head.reg_scales.0.scale"),
        (r"head\.offset\.conv\.norm\.(\w+)", r"bbox_head.offset_convs.0.gn.\1"),
        (r"head\.offset\.conv\.weight", "bbox_head.offset_convs.0.conv.weight"),
        (r"head\.offset\.predictor\.(\w+)", r"bbox_head.csp_offset.\1"),
        (r"head\.offset_scale", "bbox_head.offset_scales.0.scale"),
    ),
    transforms=(
        (r"backbone\.res\d_norm\.weight", lambda weight: weight.view(-1, 1, 1)),
        (r"head\.\w+_scale", lambda scale: scale.view(())),
    ),
    settings=(("MODEL.BLOCKCOPY.CSP.LAST_PIXEL", True),),
)

CHECKPOINTS = {"csp": _PEDESTRON}
