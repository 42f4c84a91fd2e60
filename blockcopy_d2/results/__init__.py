"""Results of videos as rows: COCO's result format, YouTube-VIS's, and Parquet."""

from .formats import FORMATS, ResultsFile, ResultsWriteError, check_results_path, format_of
from .rows import Categories, RowMaker
from .tracking import Tracker, check_tracking
from .video_results import VideoResults

__all__ = [
    "FORMATS",
    "Categories",
    "ResultsFile",
    "ResultsWriteError",
    "RowMaker",
    "Tracker",
    "VideoResults",
    "check_results_path",
    "check_tracking",
    "format_of",
]
