"""
Proposal selection, RoI heads and mask pasting of Faster and Mask R-CNN without a host in the loop.

Every shape is fixed: proposals, candidates and detections fill a fixed number of slots, and what
Detectron2 drops by boolean indices is marked instead. On CUDA the steps that PyTorch lacks are
Triton kernels, each beside a reference that runs elsewhere.
"""

from .detections import StaticDetections
from .rcnn import FrameSizes, StaticRCNN, supports

__all__ = ["FrameSizes", "StaticDetections", "StaticRCNN", "supports"]
