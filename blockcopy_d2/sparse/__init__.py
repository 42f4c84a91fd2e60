"""The block-sparse engine: runs a traced network on the active blocks of a video stream."""

from .grid import BlockGrid, num_blocks
from .module import BlockSparseModule, SparseFrame, block_sparse, counts_itself
from .oracle import MaskedDenseOracle
from .program import Pointwise
from .rules import register_rule
from .state import MissingFeatures, StreamState
from .weights import WeightsWatch, make_writable

__all__ = [
    "BlockGrid",
    "BlockSparseModule",
    "MaskedDenseOracle",
    "MissingFeatures",
    "Pointwise",
    "SparseFrame",
    "StreamState",
    "WeightsWatch",
    "block_sparse",
    "counts_itself",
    "make_writable",
    "num_blocks",
    "register_rule",
]
