"""Runs frames of streams: operator by operator, or as CUDA graphs."""

from .eager import run_frame
from .footprint import stream_bytes
from .frame_lock import FrameLock
from .graph import FrameGraph
from .history import StreamHistory
from .learning import learn
from .mac_counter import MacCounter
from .next_frame import run_and_learn, run_next_frame
from .options import VideoOptions
from .precision import inference_autocast
from .readout import read_whole
from .refresh import due_for_refresh
from .region import BlockRegion
from .result import CapturedFrameResult, FrameClock, FrameResult
from .scene_cut import scene_cuts
from .stream import StreamBatch, VideoStream
from .stream_pool import StreamPool
from .timing import StageTimer
from .videos import run_videos

__all__ = [k for k in globals().keys() if not k.startswith("_")]
