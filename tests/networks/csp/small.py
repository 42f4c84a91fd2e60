"""CSP a few channels wide."""

import torch
from detectron2.modeling import build_model

from blockcopy_d2.config import base_config
from blockcopy_d2.engine import load_config
from blockcopy_d2.resources import config_path
from tests.sparse.networks import randomize

CONFIG = "CityPersons/csp_R_50.yaml"
OPTS = [
    "MODEL.DEVICE", "cpu",
    "MODEL.WEIGHTS", "",
    "MODEL.RESNETS.STEM_OUT_CHANNELS", "8",
    "MODEL.RESNETS.RES2_OUT_CHANNELS", "16",
    "MODEL.RESNETS.WIDTH_PER_GROUP", "8",
    "MODEL.BLOCKCOPY.CSP.NECK_CHANNELS", "8",
    "MODEL.BLOCKCOPY.CSP.HEAD_CHANNELS", "32",
]  # fmt: skip


def small_csp(*opts):
    """CSP without BlockCopy, in eval mode, with statistics and biases that are not trivial."""
    model = build_model(base_config(load_config(config_path(CONFIG), [*OPTS, *opts]))).eval()
    torch.manual_seed(0)
    randomize(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_scale") or "_norm." in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    return model
