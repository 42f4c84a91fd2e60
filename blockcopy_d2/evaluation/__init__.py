"""Scores of task outputs on video, and what they cost."""

from .agreement import InstanceAgreement
from .build import build_evaluator
from .cityscapes import CityscapesVideoInstanceEvaluator, CityscapesVideoSemSegEvaluator

__all__ = [
    "CityscapesVideoInstanceEvaluator",
    "CityscapesVideoSemSegEvaluator",
    "InstanceAgreement",
    "build_evaluator",
]
