from .backbone import BlockCopyBackbone
from .compiled_operators import check_compiled_operators
from .csp import CSP
from .frames import FrameGraph
from .heads import BlockCopyDenseHead, convert_model
from .learning import learn
from .meta_arch import BlockCopyVideoModel
from .mgan import MGANROIHeads
from .refresh import due_for_refresh
from .result import FrameResult, RecordedFrameResult
from .rpn import BlockCopyRPNHead
from .scene_cut import scene_cuts
from .stream import StreamBatch, StreamPool, VideoStream
from .swiftnet import SwiftNetBackbone, SwiftNetHead
from .task import (
    InstanceTask,
    PanopticTask,
    ProposalTask,
    SemanticTask,
    build_task,
    infer_task,
    proposal_instances,
)
from .timing import StageTimer

__all__ = [k for k in globals().keys() if not k.startswith("_")]
