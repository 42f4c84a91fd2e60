from .overlay import draw_frame, pixel_classes
from .video import VideoWriter

__all__ = ["VideoWriter", "draw_frame", "pixel_classes"]
