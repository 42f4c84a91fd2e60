"""Motion: where the content of a picture was one frame ago, and maps that move with it."""

from .caches import MOVED_MAPS, CacheMover, moved_values
from .field import clear_field, field_size, moved_cells, resample_field, zero_field
from .move import move
from .policy_maps import PolicyMotion

__all__ = [
    "MOVED_MAPS",
    "CacheMover",
    "PolicyMotion",
    "clear_field",
    "field_size",
    "move",
    "moved_cells",
    "moved_values",
    "resample_field",
    "zero_field",
]
