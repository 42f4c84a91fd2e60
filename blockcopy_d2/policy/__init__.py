"""The policy: picks the blocks of a frame that are worth executing, and learns online."""

from .base import Decision, Policy
from .baselines import (
    AllBlocks,
    EveryKthFrame,
    FrameDifference,
    MovedDifference,
    NoBlocks,
    RandomBlocks,
)
from .build import POLICY_REGISTRY, build_policy, check_policy_name
from .expected_gain import ExpectedGain, GainNetwork
from .gain_learner import GainLearner
from .information_gain import (
    DetectionMasks,
    block_information_gain,
    instance_block_gain,
    instance_information_gain,
    move_detections,
    semantic_information_gain,
)
from .learned import LearnedPolicy
from .network import PolicyNetwork
from .observation import Observation, paint_output, rasterize_instances, resize_to_policy
from .reinforce import OnlineLearner

__all__ = [
    "POLICY_REGISTRY",
    "AllBlocks",
    "Decision",
    "DetectionMasks",
    "EveryKthFrame",
    "ExpectedGain",
    "FrameDifference",
    "GainLearner",
    "GainNetwork",
    "LearnedPolicy",
    "MovedDifference",
    "NoBlocks",
    "Observation",
    "OnlineLearner",
    "Policy",
    "PolicyNetwork",
    "RandomBlocks",
    "block_information_gain",
    "build_policy",
    "check_policy_name",
    "instance_block_gain",
    "instance_information_gain",
    "move_detections",
    "paint_output",
    "rasterize_instances",
    "resize_to_policy",
    "semantic_information_gain",
]
