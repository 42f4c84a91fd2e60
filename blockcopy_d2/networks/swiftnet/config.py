"""The config keys of SwiftNet, in MODEL.BLOCKCOPY."""

from types import SimpleNamespace

from blockcopy_d2.config_key import flag

__all__ = ["KEYS"]

_C = SimpleNamespace()
# A ReLU between the last convolution of a bottleneck and its addition, as only in the code of
# SwiftNet's authors. Weights fit one of the two; a ResNet-18 has no bottlenecks
_C.RELU_BEFORE_ADDITION = flag(False)

KEYS = {"SWIFTNET": _C}
