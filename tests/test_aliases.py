"""Old import paths name the new ones."""

import importlib
import sys

import pytest

from blockcopy_d2.modeling import CSP, MGANROIHeads, SwiftNetHead
from blockcopy_d2.modeling.fixed_shape import StaticRCNN, find_static_heads
from blockcopy_d2.networks.csp.targets import center_targets
from blockcopy_d2.networks.mgan.vgg import VGG16

NAMES = {
    "csp": [CSP, center_targets],
    "mgan": [MGANROIHeads, VGG16],
    "swiftnet": [SwiftNetHead],
    "static_heads": [StaticRCNN, find_static_heads],
}


@pytest.mark.parametrize("old", NAMES)
def test_old_paths_work_and_warn(old):
    sys.modules.pop(f"blockcopy_d2.modeling.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"modeling.{old} is now blockcopy_d2"):
        module = importlib.import_module(f"blockcopy_d2.modeling.{old}")
    for value in NAMES[old]:
        assert getattr(module, value.__name__) is value
