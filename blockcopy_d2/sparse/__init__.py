"""The block-sparse engine: runs a captured network on the active blocks of a video stream."""

from .grid import BlockGrid, num_blocks
from .module import BlockSparseModule, SparseFrame, block_sparse
from .oracle import MaskedDenseOracle
from .state import StreamState

__all__ = [
    "BlockGrid",
    "BlockSparseModule",
    "MaskedDenseOracle",
    "SparseFrame",
    "StreamState",
    "block_sparse",
    "num_blocks",
]
