"""MGAN a few channels wide."""

import torch
from detectron2.modeling import build_model

from blockcopy_d2.config import base_config
from blockcopy_d2.engine import load_config
from blockcopy_d2.resources import config_path
from tests.sparse.networks import randomize

CONFIG = "CityPersons/mgan_VGG_16.yaml"
OPTS = [
    "MODEL.DEVICE", "cpu",
    "MODEL.BLOCKCOPY.VGG.STAGE_CHANNELS", "[8, 8, 16, 16, 16]",
    "MODEL.RPN.PRE_NMS_TOPK_TEST", "100",
    "MODEL.RPN.POST_NMS_TOPK_TEST", "20",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50",
    "MODEL.ROI_BOX_HEAD.FC_DIM", "32",
]  # fmt: skip


def small_mgan(*opts, config_file=CONFIG):
    """MGAN without BlockCopy, in eval mode, with weights and biases that are not trivial."""
    model = build_model(base_config(load_config(config_path(config_file), [*OPTS, *opts]))).eval()
    torch.manual_seed(0)
    randomize(model)
    return model
