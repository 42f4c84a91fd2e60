"""Scores of task outputs on video, and their cost."""

from .agreement import InstanceAgreement
from .build import build_evaluator
from .citypersons import MissRateEvaluator
from .citypersons_submission import CityPersonsSubmission
from .cityscapes import CityscapesVideoInstanceEvaluator, CityscapesVideoSemSegEvaluator
from .detection import VideoCOCOEvaluator
from .miss_rate import MissRateSetting, log_average_miss_rate
from .semantic import VideoSemSegEvaluator
from .submission import CityscapesInstanceSubmission, CityscapesSemSegSubmission

__all__ = [
    "CityPersonsSubmission",
    "CityscapesInstanceSubmission",
    "CityscapesSemSegSubmission",
    "CityscapesVideoInstanceEvaluator",
    "CityscapesVideoSemSegEvaluator",
    "InstanceAgreement",
    "MissRateEvaluator",
    "MissRateSetting",
    "VideoCOCOEvaluator",
    "VideoSemSegEvaluator",
    "build_evaluator",
    "log_average_miss_rate",
]
