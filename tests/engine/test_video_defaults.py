"""
Defaults for users' own videos: copied features move, and the policy is ExpectedGain. Configs of the
paper copy in place and use the paper's policy.
"""

import sys
from pathlib import Path

import pytest
from detectron2.config import get_cfg

from blockcopy_d2.config import add_blockcopy_config
from blockcopy_d2.engine.acceleration import accelerate, load_video_config, video_config
from blockcopy_d2.engine.defaults import load_config
from blockcopy_d2.motion import BlockMatching, build_motion
from blockcopy_d2.policy import ExpectedGain
from tests.modeling.test_meta_arch import build_pair

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ZOO = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
KEY = "MODEL.BLOCKCOPY.MOTION.NAME"


def name_of(cfg):
    return cfg.MODEL.BLOCKCOPY.MOTION.NAME


def policy_of(cfg):
    return cfg.MODEL.BLOCKCOPY.POLICY.NAME


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*blockcopy.yaml")), ids=lambda p: p.stem)
def test_configs_that_repeat_the_paper_are_as_it_is(path):
    cfg = load_config(str(path), ["MODEL.DEVICE", "cpu"])
    of_the_paper = path.parent.name in ("Cityscapes", "CityPersons")
    assert name_of(cfg) == ("none" if of_the_paper else "auto")
    assert policy_of(cfg) == ("LearnedPolicy" if of_the_paper else "ExpectedGain")
    # Keys of a file win over defaults for your own videos.
    assert name_of(load_video_config(str(path))) == name_of(cfg)


def test_videos_of_ones_own_move_unless_they_say_otherwise(tmp_path):
    assert name_of(load_video_config(ZOO)) == "auto"
    assert policy_of(load_video_config(ZOO)) == policy_of(video_config(get_cfg())) == "ExpectedGain"
    opts = ["MODEL.BLOCKCOPY.POLICY.NAME", "LearnedPolicy"]
    assert policy_of(load_video_config(ZOO, opts)) == "LearnedPolicy"
    assert policy_of(video_config(get_cfg(), policy="LearnedPolicy")) == "LearnedPolicy"
    assert name_of(load_video_config(ZOO, [KEY, "none"])) == "none"
    (tmp_path / "own.yaml").write_text("MODEL: {BLOCKCOPY: {MOTION: {NAME: none}}}\n")
    assert name_of(load_video_config(str(tmp_path / "own.yaml"))) == "none"
    cfg = get_cfg()
    assert name_of(video_config(cfg)) == "auto"
    assert name_of(video_config(cfg, motion="none")) == "none"
    assert "BLOCKCOPY" not in cfg.MODEL
    add_blockcopy_config(cfg)
    assert name_of(video_config(cfg)) == name_of(cfg) == "none", "the keys are inert"


def test_an_accelerated_model_moves():
    _, stock = build_pair("mask-rcnn")
    model = accelerate(stock, block_size=64, learn=False, moved_maps="all")
    assert model.motion is not None and model.cache_mover.maps == "all"
    assert isinstance(model.policy, ExpectedGain)


@pytest.mark.parametrize("block_size, cell_size", [(8, 8), (16, 16), (128, 32)])
def test_cells_of_auto_are_no_larger_than_blocks(block_size, cell_size):
    cfg = video_config(get_cfg(), block_size=block_size)
    cfg.MODEL.BLOCKCOPY.MOTION.CELL_SIZE = 32
    assert build_motion(cfg).cell_size == cell_size
    assert cfg.MODEL.BLOCKCOPY.MOTION.CELL_SIZE == 32


def test_auto_does_without_opencv(monkeypatch):
    # An import of it fails, as where it or a library that it needs is missing.
    monkeypatch.setitem(sys.modules, "cv2", None)
    cfg = video_config(get_cfg())
    cfg.MODEL.DEVICE = "cpu"
    assert isinstance(build_motion(cfg), BlockMatching)
