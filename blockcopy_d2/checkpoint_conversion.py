"""Converts public checkpoints to state dicts of our models, see tools/convert_checkpoint.py."""

from .networks import NETWORKS
from .networks.mapping import (
    ConversionError,
    Mapping,
    check_normalization,
    convert_state_dict,
    load_public_state_dict,
    weight_settings,
)
from .networks.resnet_names import torchvision_resnet_names

__all__ = [
    "CSP",
    "MAPPINGS",
    "MGAN",
    "SWIFTNET",
    "ConversionError",
    "Mapping",
    "check_normalization",
    "convert_state_dict",
    "load_public_state_dict",
    "torchvision_resnet_names",
    "weight_settings",
]

# Sources by the name that tools/convert_checkpoint.py takes.
MAPPINGS = {
    name: mapping for network in NETWORKS.values() for name, mapping in network.CHECKPOINTS.items()
}
CSP, MGAN, SWIFTNET = MAPPINGS["csp"], MAPPINGS["mgan"], MAPPINGS["swiftnet"]
