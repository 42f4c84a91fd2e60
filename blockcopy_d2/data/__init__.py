"""Data sets of video clips, their loader, and readers of video files."""

from .addresses import redact, redact_words
from .camvid import load_camvid, register_camvid
from .citypersons import (
    load_citypersons,
    load_citypersons_video,
    register_citypersons,
    register_citypersons_video,
)
from .cityscapes_video import (
    load_cityscapes_video,
    load_labelled_frames,
    register_cityscapes_video,
    register_labelled_frames,
)
from .clips import ClipMapper, ClipSampler, FrameReadError, build_clip_loader
from .davis import load_davis, register_davis
from .feed import FrameFeed
from .frame_mapper import FrameMapper
from .pets09 import load_pets09, load_pets09_video, register_pets09, register_pets09_video
from .pictures import as_frame, as_picture, read_picture
from .read_ahead import close_all, next_of_each, read_ahead
from .registration import register_dataset
from .sem_seg import build_sem_seg_train_mapper
from .upload import SentPicture, Uploader
from .video_files import OwnFrames, VideoFormat, VideoFrames, open_frames
from .visible_boxes import VisibleBoxMapper

from . import builtin  # noqa: F401  isort:skip  registers the data sets

__all__ = [
    "ClipMapper",
    "ClipSampler",
    "FrameFeed",
    "FrameMapper",
    "FrameReadError",
    "OwnFrames",
    "SentPicture",
    "Uploader",
    "VideoFormat",
    "VideoFrames",
    "VisibleBoxMapper",
    "as_frame",
    "as_picture",
    "build_clip_loader",
    "build_sem_seg_train_mapper",
    "close_all",
    "load_camvid",
    "load_citypersons",
    "load_citypersons_video",
    "load_cityscapes_video",
    "load_davis",
    "load_labelled_frames",
    "load_pets09",
    "load_pets09_video",
    "next_of_each",
    "open_frames",
    "read_ahead",
    "read_picture",
    "redact",
    "redact_words",
    "register_camvid",
    "register_citypersons",
    "register_citypersons_video",
    "register_cityscapes_video",
    "register_dataset",
    "register_davis",
    "register_labelled_frames",
    "register_pets09",
    "register_pets09_video",
]
