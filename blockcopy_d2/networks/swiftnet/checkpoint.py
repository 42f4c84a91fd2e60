"""
SwiftNet of the BlockCopy authors (``semantic_segmentation`` in their release), and of its own
authors (``models/resnet/resnet_single_scale.py`` of orsic/swiftnet).
"""

from ..mapping import Mapping
from ..resnet_names import torchvision_resnet_names

__all__ = ["CHECKPOINTS"]


def _names(theirs):
    """Rows for :attr:`Mapping.names`; ``theirs`` precedes their names of pyramid and decoder."""
    return (
        *torchvision_resnet_names("backbone.bottom_up.", "backbone."),
        (r"backbone\.spp\.project\.(.+)", rf"{theirs}spp.spp.spp_bn.\1"),
        (r"backbone\.spp\.levels\.(\d)\.(.+)", rf"{theirs}spp.spp.spp\1.\2"),
        (r"backbone\.spp\.fuse\.(.+)", rf"{theirs}spp.spp.spp_fuse.\1"),
        (r"backbone\.upsample\.(\d)\.lateral\.(.+)", rf"{theirs}upsample.\1.bottleneck.\2"),
        (r"backbone\.upsample\.(\d)\.blend\.(.+)", rf"{theirs}upsample.\1.blend_conv.\2"),
        (r"sem_seg_head\.logits\.(.+)", r"logits.\1"),
    )


CHECKPOINTS = {
    "swiftnet": Mapping(
        source="the BlockCopy authors' SwiftNet",
        config_file="Cityscapes/swiftnet_R_50.yaml",
        names=_names(""),
        settings=(("MODEL.BLOCKCOPY.SWIFTNET.RELU_BEFORE_ADDITION", False),),
    ),
    "swiftnet_orsic": Mapping(
        source="the SwiftNet of its own authors (orsic/swiftnet)",
        config_file="Cityscapes/swiftnet_R_18_orsic.yaml",
        names=_names("backbone."),
        settings=(("MODEL.BLOCKCOPY.SWIFTNET.RELU_BEFORE_ADDITION", True),),
        normalization=("backbone.img_mean", "backbone.img_std"),
    ),
}
