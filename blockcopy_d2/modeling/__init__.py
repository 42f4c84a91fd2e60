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
    FrameGraph,
    FrameResult,
    RecordedFrameResult,
    StageTimer,
    StreamBatch,
    StreamPool,
    VideoStream,
    due_for_refresh,
    learn,
    scene_cuts,
)
from .tasks import (
    TASK_REGISTRY,
    InstanceTask,
    PanopticTask,
    ProposalTask,
    SemanticTask,
    Task,
    build_task,
    infer_task,
    proposal_instances,
)

__all__ = [k for k in globals().keys() if not k.startswith("_")]
