from .overlay import draw_frame
from .video import VideoWriter

__all__ = ["VideoWriter", "draw_frame"]
