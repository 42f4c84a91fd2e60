"""
A page about one video: the time that BlockCopy saves, and its agreement with the dense result.
"""

from .page import render_page
from .recording import Recording, record_video

__all__ = ["Recording", "record_video", "render_page"]
