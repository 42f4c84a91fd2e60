from .csp import CSP
from .mapping import ConversionError, Mapping, convert_state_dict, load_public_state_dict
from .mgan import MGAN
from .resnet import torchvision_resnet_names
from .swiftnet import SWIFTNET

# Networks by the name that tools/convert_checkpoint.py takes.
MAPPINGS = {"csp": CSP, "mgan": MGAN, "swiftnet": SWIFTNET}

__all__ = [k for k in globals().keys() if not k.startswith("_")]
