"""
The parts of meta-architectures other than convolutions, without a host in the loop.

Every shape is fixed: proposals, candidates and detections fill a fixed number of slots. Entries
that Detectron2 would drop by boolean indices are marked instead. On CUDA the steps that PyTorch
lacks are Triton kernels, each beside a reference that runs elsewhere.
"""

from .base import StaticHeads
from .csp import StaticCSP
from .dense_detector import StaticFCOS, StaticRetinaNet
from .detections import StaticDetections
from .geometry import FrameSizes
from .panoptic import StaticPanopticFPN
from .proposal_network import StaticProposalNetwork, StaticProposals
from .rcnn import StaticRCNN
from .segmentor import StaticSegmentor

__all__ = [
    "FrameSizes",
    "StaticCSP",
    "StaticDetections",
    "StaticFCOS",
    "StaticHeads",
    "StaticPanopticFPN",
    "StaticProposalNetwork",
    "StaticProposals",
    "StaticRCNN",
    "StaticRetinaNet",
    "StaticSegmentor",
    "find_static_heads",
]

_KINDS = (
    StaticRCNN,
    StaticPanopticFPN,
    StaticRetinaNet,
    StaticFCOS,
    StaticProposalNetwork,
    StaticSegmentor,
    StaticCSP,
)


def find_static_heads(model):
    """
    Args:
        model (nn.Module): a meta-architecture.

    Returns:
        type[StaticHeads] or None: the class that computes the same, if there is one.
    """
    return next((kind for kind in _KINDS if kind.supports(model)), None)
