"""
Tasks: turn outputs into the policy's input, and compare two outputs. One class per kind of output.
"""

from .base import TASK_REGISTRY, Task, takes_batches
from .build import build_task, infer_task
from .instances import InstanceTask
from .panoptic import PanopticTask
from .proposals import ProposalTask, proposal_instances
from .semantic import ReleasedSemanticTask, SemanticTask

__all__ = [k for k in globals().keys() if not k.startswith("_")]
