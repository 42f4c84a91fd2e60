from .backbone import BlockCopyBackbone
from .csp import CSP
from .heads import BlockCopyDenseHead, convert_heads
from .meta_arch import BlockCopyVideoModel, FrameResult
from .mgan import MGANROIHeads
from .rpn import BlockCopyRPNHead
from .stream import StreamPool, VideoStream
from .swiftnet import SwiftNetBackbone, SwiftNetHead
from .task import InstanceTask, SemanticTask, build_task
from .timing import StageTimer

__all__ = [k for k in globals().keys() if not k.startswith("_")]
