"""Motion: where the content of a picture was one frame ago, and maps that move with it."""

from .block_matching import BlockMatching
from .build import CELL_SIZES, MOTION_REGISTRY, MotionEstimator, build_motion
from .caches import MOVED_MAPS, CacheMover, moved_values
from .codec_vectors import CodecReader, CodecVectors, FrameVectors
from .dis_flow import DIS_PRESETS, DISFlow
from .field import clear_field, field_size, moved_cells, resample_field, zero_field
from .move import move
from .policy_maps import PolicyMotion
from .pyramid import MotionFeatures

__all__ = [
    "CELL_SIZES",
    "DIS_PRESETS",
    "MOTION_REGISTRY",
    "MOVED_MAPS",
    "BlockMatching",
    "CacheMover",
    "CodecReader",
    "CodecVectors",
    "DISFlow",
    "FrameVectors",
    "MotionEstimator",
    "MotionFeatures",
    "PolicyMotion",
    "build_motion",
    "clear_field",
    "field_size",
    "move",
    "moved_cells",
    "moved_values",
    "resample_field",
    "zero_field",
]
