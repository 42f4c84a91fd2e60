"""Running a frame: operator by operator, or as CUDA graphs."""

from .eager import run_frame
from .graph import FrameGraph

__all__ = ["FrameGraph", "run_frame"]
