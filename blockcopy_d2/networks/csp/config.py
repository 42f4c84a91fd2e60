"""The config keys of CSP, in MODEL.BLOCKCOPY."""

from types import SimpleNamespace

from blockcopy_d2.config_key import channels, flag, number, whole

__all__ = ["KEYS"]

_C = SimpleNamespace()
# Channels of each upsampled feature map, and of each branch of the head
_C.NECK_CHANNELS = channels(256)
_C.HEAD_CHANNELS = channels(256)
# Width / height of every box
_C.ASPECT_RATIO = number(0.41, most=100, open_ends=True)
# Detections: the pixels of highest score, those above the threshold, NMS by IoU
_C.TOPK_CANDIDATES_TEST = whole(1000, least=1)
_C.SCORE_THRESH_TEST = number(0.1, most=1)
_C.NMS_THRESH_TEST = number(0.5, most=1)
# As in Pedestron, whose boxes end on their last pixel: boxes are clipped to W - 1 and H - 1, and
# NMS counts them as one wider and higher than x1 - x0 and y1 - y0
_C.LAST_PIXEL = flag(False)
# As in the paper of CSP
_C.CENTER_LOSS_WEIGHT = number(0.01)
_C.HEIGHT_LOSS_WEIGHT = number(1.0)
_C.OFFSET_LOSS_WEIGHT = number(0.1)

KEYS = {"CSP": _C}
