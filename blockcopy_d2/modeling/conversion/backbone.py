from detectron2.config import configurable
from detectron2.modeling import BACKBONE_REGISTRY, Backbone

from blockcopy_d2.sparse import BlockSparseModule

__all__ = ["BlockCopyBackbone"]


@BACKBONE_REGISTRY.register()
class BlockCopyBackbone(BlockSparseModule, Backbone):
    """
    Any Detectron2 backbone. Inside :func:`blockcopy_d2.sparse.block_sparse` it executes the active
    blocks of a frame; elsewhere it is the backbone it holds, whose state dict it shares.
    """

    @configurable
    def __init__(self, module, backend="auto"):
        """
        Args:
            module (Backbone): what to run block by block.
            backend (str): see :class:`blockcopy_d2.sparse.BlockSparseModule`.
        """
        super().__init__(module, backend)

    @classmethod
    def from_config(cls, cfg, input_shape):
        build_base = BACKBONE_REGISTRY.get(cfg.MODEL.BLOCKCOPY.BASE_BACKBONE)
        return {
            "module": build_base(cfg, input_shape),
            "backend": cfg.MODEL.BLOCKCOPY.BACKEND,
        }

    @property
    def size_divisibility(self):
        return self.dense_module.size_divisibility

    @property
    def padding_constraints(self):
        return self.dense_module.padding_constraints

    def output_shape(self):
        return self.dense_module.output_shape()
