"""
Pictures and videos of results. Each name is imported when it is first used: what draws needs
Matplotlib, what writes videos PyAV.
"""

import importlib

_MODULES = {
    "VideoWriteError": "video",
    "VideoWriter": "video",
    "check_video_path": "video",
    "draw_frame": "overlay",
    "draw_motion": "motion_field",
    "found_instances": "overlay",
    "pixel_classes": "overlay",
}

__all__ = list(_MODULES)


def __getattr__(name):
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
