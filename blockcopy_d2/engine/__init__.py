"""Programs: predictors, evaluation as a loop of hooks, checkpoints, configs."""

from .acceleration import accelerate
from .budget import FrameBudget
from .checkpoint import PolicyCheckpointer, SafeCheckpointer, WeightsCheckpointer
from .defaults import default_argument_parser, load_config, setup
from .hooks import ScoringError
from .launch import launch
from .loop import EvaluationLoop
from .predictor import FrameMapper, VideoPredictor
from .runs import build_video_model, evaluate_clips, warm_policy
from .stopping import RunStopped

__all__ = [k for k in globals().keys() if not k.startswith("_")]
