"""Makes a dense model of Detectron2 block-sparse."""

from .compiled_operators import check_compiled_operators
from .convert import convert_model
from .modules import BlockCopyBackbone, BlockCopyDenseHead, BlockCopyRPNHead

__all__ = [k for k in globals().keys() if not k.startswith("_")]
