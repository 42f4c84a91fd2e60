"""Public checkpoints -> the state dicts of our models, see tools/convert_checkpoint.py."""

from .networks import NETWORKS
from .networks.csp import CHECKPOINT as CSP
from .networks.mapping import (
    ConversionError,
    Mapping,
    convert_state_dict,
    load_public_state_dict,
)
from .networks.mgan import CHECKPOINT as MGAN
from .networks.resnet_names import torchvision_resnet_names
from .networks.swiftnet import CHECKPOINT as SWIFTNET

__all__ = [
    "CSP",
    "MAPPINGS",
    "MGAN",
    "SWIFTNET",
    "ConversionError",
    "Mapping",
    "convert_state_dict",
    "load_public_state_dict",
    "torchvision_resnet_names",
]

# Networks by the name that tools/convert_checkpoint.py takes.
MAPPINGS = {name: network.CHECKPOINT for name, network in NETWORKS.items()}
