import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from blockcopy_d2 import (
    add_blockcopy_config,
    base_config,
    check_blockcopy_config,
    enable_blockcopy,
)
from blockcopy_d2.engine import default_argument_parser, load_config, setup
from blockcopy_d2.resources import config_path, shipped_configs, trained_weights

ON = ["MODEL.BLOCKCOPY.ENABLED", "True"]


def test_adding_the_keys_twice_keeps_values():
    cfg = get_cfg()
    add_blockcopy_config(cfg)
    once = cfg.dump()
    add_blockcopy_config(cfg)
    assert cfg.dump() == once
    cfg.MODEL.BLOCKCOPY.TARGET = 0.7
    del cfg.MODEL.BLOCKCOPY.POLICY["SEED"]
    add_blockcopy_config(cfg)
    assert cfg.MODEL.BLOCKCOPY.TARGET == 0.7
    assert cfg.MODEL.BLOCKCOPY.POLICY.SEED == 0


def test_keys_of_two_configs_are_not_shared():
    first, second = get_cfg(), get_cfg()
    add_blockcopy_config(first)
    add_blockcopy_config(second)
    first.MODEL.BLOCKCOPY.POLICY.SEED = 5
    first.TEST.BLOCKCOPY.COMPARE.append("dense")
    assert second.MODEL.BLOCKCOPY.POLICY.SEED == 0
    assert second.TEST.BLOCKCOPY.COMPARE == []


def test_inert_by_default():
    plain, ours = get_cfg(), get_cfg()
    add_blockcopy_config(ours)
    enable_blockcopy(ours)
    del ours.MODEL["BLOCKCOPY"], ours.INPUT["CLIP"]
    del ours.TEST["BLOCKCOPY"], ours.TEST["AMP"]
    assert ours.dump() == plain.dump()


def test_enabling_moves_names_once_and_base_config_puts_them_back():
    before = load_config(config_path("Cityscapes/mask_rcnn_R_50_FPN.yaml"))
    cfg = before.clone()
    cfg.MODEL.BLOCKCOPY.ENABLED = True
    enable_blockcopy(cfg)
    enable_blockcopy(cfg)
    assert cfg.MODEL.META_ARCHITECTURE == "BlockCopyVideoModel"
    assert cfg.MODEL.BLOCKCOPY.BASE_META_ARCHITECTURE == "GeneralizedRCNN"
    assert cfg.MODEL.BLOCKCOPY.BASE_BACKBONE == "build_resnet_fpn_backbone"
    assert cfg.MODEL.BLOCKCOPY.BASE_RPN_HEAD == "StandardRPNHead"
    assert base_config(cfg).dump() == before.dump()


@pytest.mark.parametrize(
    "key, value",
    [
        ("MODEL.BLOCKCOPY.TARGET", "1.5"),
        ("MODEL.BLOCKCOPY.TARGET", "-0.1"),
        ("MODEL.BLOCKCOPY.BLOCK_SIZE", "96"),
        ("MODEL.BLOCKCOPY.BLOCK_SIZE", "0"),
        ("MODEL.BLOCKCOPY.MAX_STREAMS", "0"),
        ("MODEL.BLOCKCOPY.DENSE_ABOVE", "1.5"),
        ("MODEL.BLOCKCOPY.POLICY.NAME", "LearntPolicy"),
        ("MODEL.BLOCKCOPY.LEARNER.COST_FORM", "notes"),
        ("MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY", "0"),
        ("INPUT.CLIP.NUM_FRAMES", "0"),
        ("TEST.BLOCKCOPY.COMPARE", "['dens']"),
    ],
)
def test_a_value_out_of_range_is_named(key, value):
    with pytest.raises(ValueError, match=key) as error:
        load_config(opts=[key, value])
    assert value.strip("[']") in str(error.value)
    assert "must be" in str(error.value)


def test_nan_target_is_refused():
    cfg = load_config()
    cfg.MODEL.BLOCKCOPY.TARGET = float("nan")
    with pytest.raises(ValueError, match="TARGET"):
        check_blockcopy_config(cfg)


def test_an_unknown_key_is_named_with_its_neighbours(tmp_path):
    with pytest.raises(KeyError, match="MODEL.BLOCKCOPY.TARGETT.*MODEL.BLOCKCOPY.TARGET"):
        load_config(opts=["MODEL.BLOCKCOPY.TARGETT", "0.3"])
    file = tmp_path / "config.yaml"
    file.write_text("MODEL:\n  BLOCKCOPI:\n    ENABLED: True\nVERSION: 2\n")
    with pytest.raises(KeyError, match="MODEL.BLOCKCOPI.*MODEL.BLOCKCOPY"):
        load_config(str(file))


def test_an_override_without_value_is_refused():
    with pytest.raises(ValueError, match="pairs of KEY and VALUE"):
        load_config(opts=["MODEL.BLOCKCOPY.TARGET"])


def test_a_file_of_another_kind_is_named(tmp_path):
    with pytest.raises(ValueError, match="is a LazyConfig"):
        load_config(config_path("COCO-Detection/fcos_R_50_FPN_1x.py"))
    for content in ("only a text", "a: [1", "- a\n- list"):
        file = tmp_path / "config.yaml"
        file.write_text(content)
        with pytest.raises(ValueError, match="config.yaml is not a yaml config"):
            load_config(str(file))


def test_overrides_may_follow_a_flag():
    parser = default_argument_parser()
    pairs = ["MODEL.DEVICE", "cpu", "VERSION", "2"]
    for flag in ([], ["--opts"]):
        args = parser.parse_args(["--eval-only", "--config-file", "a.yaml", *flag, *pairs])
        assert args.opts == pairs and args.eval_only
    assert parser.parse_args([]).opts == []


def test_an_evaluation_takes_the_trained_weights_of_the_zoo(tmp_path):
    name = "Cityscapes/mask_rcnn_R_50_FPN.yaml"
    pairs = ["OUTPUT_DIR", str(tmp_path), "SEED", "1"]

    def weights(*arguments):
        arguments = ["--config-file", name, *arguments]
        return setup(default_argument_parser().parse_args(arguments)).MODEL.WEIGHTS

    assert weights("--eval-only", *pairs) == trained_weights(name)
    assert weights("--eval-only", *pairs, "MODEL.WEIGHTS", "mine.pth") == "mine.pth"
    assert weights(*pairs) == load_config(config_path(name)).MODEL.WEIGHTS != trained_weights(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_the_device_follows_the_machine():
    cfg = load_config(config_path("StreetClips/mask_rcnn_R_18_FPN.yaml"))
    assert cfg.MODEL.DEVICE == "cpu"
    assert not cfg.SOLVER.AMP.ENABLED


@pytest.mark.parametrize("name", shipped_configs())
def test_every_config_loads(name):
    cfg = load_config(config_path(name))
    assert cfg.MODEL.BLOCKCOPY.ENABLED == ("blockcopy" in name.lower())


def test_zoo_config_and_switch_are_enough():
    cfg = load_config(config_path("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"), ON)
    assert cfg.MODEL.BLOCKCOPY.BASE_META_ARCHITECTURE == "GeneralizedRCNN"


def test_cityscapes_config_is_the_zoo_entry_with_its_trained_weights():
    ours = base_config(load_config(config_path("Cityscapes/mask_rcnn_R_50_FPN_blockcopy.yaml")))
    zoo = load_config(config_path("Cityscapes/mask_rcnn_R_50_FPN.yaml"))
    url = model_zoo.get_checkpoint_url("Cityscapes/mask_rcnn_R_50_FPN.yaml")
    assert url.endswith(ours.MODEL.WEIGHTS.removeprefix("detectron2://"))
    zoo.MODEL.WEIGHTS = ours.MODEL.WEIGHTS
    del ours.MODEL["BLOCKCOPY"], zoo.MODEL["BLOCKCOPY"]
    assert ours.MODEL.dump() == zoo.MODEL.dump()
    for key in ("FORMAT", "MIN_SIZE_TEST", "MAX_SIZE_TEST"):
        assert ours.INPUT[key] == zoo.INPUT[key]


def test_the_demo_detector_is_small_enough_to_ship():
    model = build_model(load_config(config_path("StreetClips/mask_rcnn_R_18_FPN.yaml")))
    assert sum(parameter.numel() for parameter in model.parameters()) <= 18e6
