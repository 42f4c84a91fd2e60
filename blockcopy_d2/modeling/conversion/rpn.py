from detectron2.config import configurable
from detectron2.modeling.proposal_generator import RPN_HEAD_REGISTRY

from blockcopy_d2.sparse import BlockSparseModule

__all__ = ["BlockCopyRPNHead"]


@RPN_HEAD_REGISTRY.register()
class BlockCopyRPNHead(BlockSparseModule):
    """
    Any RPN head, with the features of all levels in and their logits and deltas out. Inside
    :func:`blockcopy_d2.sparse.block_sparse` it executes the active blocks of a frame.
    """

    @configurable
    def __init__(self, module, backend="auto"):
        """
        Args:
            module (nn.Module): what to run block by block.
            backend (str): see :class:`blockcopy_d2.sparse.BlockSparseModule`.
        """
        super().__init__(module, backend)

    @classmethod
    def from_config(cls, cfg, input_shape):
        build_base = RPN_HEAD_REGISTRY.get(cfg.MODEL.BLOCKCOPY.BASE_RPN_HEAD)
        return {
            "module": build_base(cfg, input_shape),
            "backend": cfg.MODEL.BLOCKCOPY.BACKEND,
        }
