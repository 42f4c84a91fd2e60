from .overlay import draw_frame, pixel_classes
from .video import VideoWriteError, VideoWriter, check_video_path

__all__ = ["VideoWriteError", "VideoWriter", "check_video_path", "draw_frame", "pixel_classes"]
