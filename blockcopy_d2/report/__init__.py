"""A page about one video: what BlockCopy saves on it, and what it keeps of the dense result."""

from .page import render_page
from .recording import Recording, record_video

__all__ = ["Recording", "record_video", "render_page"]
