"""A Mask R-CNN small enough to run many frames a second, with weights in a file."""

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import build_model

from blockcopy_d2.config import base_config
from blockcopy_d2.engine.defaults import load_config
from blockcopy_d2.resources import config_path

CONFIG = "StreetClips/mask_rcnn_R_18_FPN.yaml"

_OPTS = [
    "MODEL.DEVICE", "cpu",
    "MODEL.FPN.OUT_CHANNELS", "16",
    "MODEL.ROI_BOX_HEAD.FC_DIM", "16",
    "MODEL.ROI_MASK_HEAD.CONV_DIM", "16",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0",
    "MODEL.BLOCKCOPY.BLOCK_SIZE", "64",
    "INPUT.MIN_SIZE_TEST", "128",
    "TEST.DETECTIONS_PER_IMAGE", "5",
]  # fmt: skip


def small_model_opts(folder):
    """
    Args:
        folder (Path): where the weights go.

    Returns:
        list[str]: overrides of ``CONFIG``.
    """
    weights = folder / "model.pth"
    if not weights.exists():
        torch.manual_seed(0)
        cfg = base_config(load_config(config_path(CONFIG), _OPTS))
        torch.save({"model": build_model(cfg).state_dict()}, weights)
    return [*_OPTS, "MODEL.WEIGHTS", str(weights)]


def write_lazy_config(folder, name="COCO-Detection/retinanet_R_50_FPN_1x.py"):
    """
    Args:
        folder (Path): where config and weights go.
        name (str): name of a LazyConfig of the zoo, which is made a few channels wide.

    Returns:
        tuple[str, list[str]]: its path, and overrides.
    """
    config, weights = folder / "config.py", folder / "lazy_model.pth"
    config.write_text(
        "from detectron2.model_zoo import get_config\n"
        "from tests.engine.test_acceleration import narrow_lazy_model\n"
        f"_zoo = get_config({name!r})\n"
        f"model, train, dataloader = narrow_lazy_model({name!r}), _zoo.train, _zoo.dataloader\n"
    )
    torch.save({"model": instantiate(LazyConfig.load(str(config)).model).state_dict()}, weights)
    return str(config), [
        f"train.init_checkpoint={weights}",
        "dataloader.test.mapper.augmentations.0.short_edge_length=96",
        "blockcopy.block_size=32",
    ]
