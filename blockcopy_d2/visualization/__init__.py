"""Pictures and videos of results. Names that need PyAV are imported on first use."""

import importlib

from .motion_field import draw_motion
from .overlay import draw_frame, found_instances, pixel_classes

__all__ = [
    "VideoWriteError",
    "VideoWriter",
    "check_video_path",
    "draw_frame",
    "draw_motion",
    "found_instances",
    "pixel_classes",
]


def __getattr__(name):
    if name in __all__:
        return getattr(importlib.import_module(".video", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
