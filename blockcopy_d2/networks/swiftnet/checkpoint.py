"""SwiftNet of the BlockCopy authors (``semantic_segmentation`` in their release)."""

from ..mapping import Mapping
from ..resnet_names import torchvision_resnet_names

__all__ = ["CHECKPOINT"]

CHECKPOINT = Mapping(
    source="the BlockCopy authors' SwiftNet",
    config_file="Cityscapes/swiftnet_R_50.yaml",
    names=(
        *torchvision_resnet_names("backbone.bottom_up.", "backbone."),
        (r"backbone\.spp\.project\.(.+)", r"spp.spp.spp_bn.\1"),
        (r"backbone\.spp\.levels\.(\d)\.(.+)", r"spp.spp.spp\1.\2"),
        (r"backbone\.spp\.fuse\.(.+)", r"spp.spp.spp_fuse.\1"),
        (r"backbone\.upsample\.(\d)\.lateral\.(.+)", r"upsample.\1.bottleneck.\2"),
        (r"backbone\.upsample\.(\d)\.blend\.(.+)", r"upsample.\1.blend_conv.\2"),
        (r"sem_seg_head\.logits\.(.+)", r"logits.\1"),
    ),
)
