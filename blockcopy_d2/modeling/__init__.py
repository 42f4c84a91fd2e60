"""The video model: conversion of dense models, running of frames, tasks and heads."""

from blockcopy_d2.networks.mapping import weight_settings
from blockcopy_d2.networks.registration import (
    CSP,
    MGANROIHeads,
    SwiftNetBackbone,
    SwiftNetHead,
)

from .conversion import (
    BlockCopyBackbone,
    BlockCopyDenseHead,
    BlockCopyRPNHead,
    check_compiled_operators,
    convert_model,
)
from .meta_arch import BlockCopyVideoModel
from .running import (
    BlockRegion,
    CapturedFrameResult,
    FrameClock,
    FrameGraph,
    FrameResult,
    MacCounter,
    StageTimer,
    StreamBatch,
    StreamHistory,
    StreamPool,
    VideoOptions,
    VideoStream,
    due_for_refresh,
    learn,
    read_whole,
    scene_cuts,
)
from .tasks import (
    TASK_REGISTRY,
    InstanceTask,
    PanopticTask,
    ProposalTask,
    ReleasedSemanticTask,
    SemanticTask,
    Task,
    build_task,
    infer_task,
    proposal_instances,
    takes_batches,
)

__all__ = [k for k in globals().keys() if not k.startswith("_")]


def __getattr__(name):
    if name == "RecordedFrameResult":
        import warnings

        warnings.warn("RecordedFrameResult is now CapturedFrameResult", FutureWarning, stacklevel=2)
        return CapturedFrameResult
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
