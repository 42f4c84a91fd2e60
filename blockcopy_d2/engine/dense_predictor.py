"""Detectron2's own predictor, to run beside a :class:`VideoPredictor`."""

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor

from blockcopy_d2.config import base_config
from blockcopy_d2.data import FrameMapper
from blockcopy_d2.modeling import check_compiled_operators

from .acceleration import build_lazy_model, metadata_of
from .checkpoint import WeightsCheckpointer

__all__ = ["dense_predictor"]


class _LazyPredictor:
    """Detectron2's ``DefaultPredictor`` for a LazyConfig."""

    def __init__(self, cfg):
        self.model = build_lazy_model(cfg)
        check_compiled_operators(self.model)
        self.metadata = metadata_of(cfg)
        self._mapper = FrameMapper(cfg)

    @torch.no_grad()
    def __call__(self, image):
        return self.model([self._mapper(image)])[0]


def dense_predictor(cfg):
    """
    Args:
        cfg (CfgNode or DictConfig): a config, with or without BlockCopy.

    Returns:
        callable: Detectron2's predictor, whose model runs as it is. It has the ``metadata`` of the
        data set.

    Raises:
        ValueError: the weights do not fit the model.
    """
    if not isinstance(cfg, CfgNode):
        return _LazyPredictor(cfg)
    cfg = base_config(cfg)
    weights, cfg.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS, ""
    predictor = DefaultPredictor(cfg)
    check_compiled_operators(predictor.model)
    WeightsCheckpointer(predictor.model).load(weights)
    return predictor
