"""Data sets of video clips, their loader, and readers of video files."""

from .cityscapes_video import (
    load_cityscapes_video,
    load_labelled_frames,
    register_cityscapes_video,
    register_labelled_frames,
)
from .clips import ClipMapper, ClipSampler, FrameReadError, build_clip_loader
from .video_files import VideoFrames

from . import builtin  # noqa: F401  isort:skip  registers the data sets

__all__ = [
    "ClipMapper",
    "ClipSampler",
    "FrameReadError",
    "VideoFrames",
    "build_clip_loader",
    "load_cityscapes_video",
    "load_labelled_frames",
    "register_cityscapes_video",
    "register_labelled_frames",
]
