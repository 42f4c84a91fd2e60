"""The config keys of MGAN, in MODEL.BLOCKCOPY."""

from types import SimpleNamespace

from blockcopy_d2.config_key import channels, choice, list_of, number

__all__ = ["KEYS"]

# The backbone build_vgg16_backbone; its first BACKBONE.FREEZE_AT stages are not trained
_VGG = SimpleNamespace()
# Channels of its five stages
_VGG.STAGE_CHANNELS = list_of([64, 128, 256, 512, 512], channels(64), length=5)
# Normalization after each convolution. VGG-16 has none; trained from scratch it needs "BN"
_VGG.NORM = choice("", "BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN", "LN")

_MGAN = SimpleNamespace()
# The features that attention weighs: "regions", those of the regions, as in the paper of MGAN and
# its authors' repository since May 2020; or "convolved", those of attention's own convolutions, as
# in Pedestron. Weights fit one of the two
_MGAN.ATTENDED = choice("regions", "convolved")
# Weight of the loss that learns attention from the visible part of each pedestrian
_MGAN.MASK_LOSS_WEIGHT = number(0.5)

KEYS = {"VGG": _VGG, "MGAN": _MGAN}
