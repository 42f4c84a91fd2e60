"""Making a dense model of Detectron2 block-sparse."""

from .backbone import BlockCopyBackbone
from .compiled_operators import check_compiled_operators
from .heads import BlockCopyDenseHead, convert_model
from .rpn import BlockCopyRPNHead

__all__ = [
    "BlockCopyBackbone",
    "BlockCopyDenseHead",
    "BlockCopyRPNHead",
    "check_compiled_operators",
    "convert_model",
]
