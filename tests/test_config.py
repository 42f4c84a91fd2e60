import functools
import math
from pathlib import Path

import pytest
import torch
import yaml
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import demo
from blockcopy_d2 import (
    add_blockcopy_config,
    base_config,
    check_blockcopy_config,
    enable_blockcopy,
)
from blockcopy_d2.config import KEYS
from blockcopy_d2.engine import default_argument_parser, load_config, setup
from blockcopy_d2.engine.acceleration import load_video_config
from blockcopy_d2.report import __main__ as report
from blockcopy_d2.resources import config_path, shipped_configs, trained_weights

ON = ["MODEL.BLOCKCOPY.ENABLED", "True"]
# Values that a yaml file or a command line may give.
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=5)), max_size=6),
)
NAMES = st.sampled_from(
    ["VERSION", "_BASE_", "MODEL", "INPUT", "BLOCKCOPY", "TARGET", "MASK_ON", "CLIP", "SOLVER"]
)


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
        ("MODEL.BLOCKCOPY.TASK", "InstancesTask"),
        ("MODEL.BLOCKCOPY.MOTION.NAME", "BlockMatcher"),
        ("MODEL.BLOCKCOPY.LEARNER.COST_FORM", "notes"),
        ("MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY", "0"),
        ("INPUT.CLIP.NUM_FRAMES", "0"),
        ("TEST.BLOCKCOPY.COMPARE", "['dens']"),
        ("MODEL.BLOCKCOPY.POLICY.INPUTS", "['frame', 'frame']"),
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
    kinds = {
        "only a text": "keys",
        "a: [1": "",
        "- a\n- list": "Expected keys",
        "": "keys",
    }
    for content, expected in kinds.items():
        file = tmp_path / "config.yaml"
        file.write_text(content)
        with pytest.raises(ValueError, match=f"config.yaml is not a yaml config.*{expected}"):
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


@pytest.mark.parametrize("name", KEYS)
def test_a_default_is_allowed_and_another_type_is_named(name):
    key = KEYS[name]
    assert key.check(name, key.default) == key.default
    assert type(key.check(name, key.default)) is type(key.default)
    for value in ({"a": 1}, None, b"bytes", object()):
        with pytest.raises(ValueError, match=f"^{name} is .*; it must be "):
            key.check(name, value)


FLOATS = [name for name, key in KEYS.items() if isinstance(key.default, float)]
INTS = [name for name, key in KEYS.items() if type(key.default) is int]
FLAGS = [name for name, key in KEYS.items() if isinstance(key.default, bool)]


@pytest.mark.parametrize("name", FLOATS)
def test_a_number_is_finite_and_may_be_whole(name, tmp_path):
    for value in ("nan", "inf", "-inf", "1e999", "-1", "True", "'1'"):
        with pytest.raises(ValueError, match=f"{name} is .*finite"):
            load_config(opts=[name, f"float('{value}')" if "inf" in value else value])
    for whole in (0, 1):
        if name.endswith(("ASPECT_RATIO", "POLICY.BURST")) and not whole:
            continue
        *path, leaf = name.split(".")
        content = {leaf: whole}
        for part in reversed(path):
            content = {part: content}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"VERSION": 2, **content}))
        for cfg in (
            load_config(opts=[name, str(whole)]),
            load_config(opts=[name, whole]),
            load_config(str(tmp_path / "config.yaml")),
        ):
            value = functools.reduce(getattr, name.split("."), cfg)
            assert value == whole and type(value) is float


@pytest.mark.parametrize("name", INTS)
def test_a_count_is_whole_and_bounded(name):
    for value in ("1.5", "-1", str(2**64), "True", "nan", "None", "[1]"):
        with pytest.raises(ValueError, match=f"{name} is "):
            load_config(opts=[name, value])


@pytest.mark.parametrize("name", FLAGS)
def test_a_switch_is_true_or_false(name):
    for value in ("no", "0", "1", "off", "None", "[]"):
        with pytest.raises(ValueError, match=f"{name} is .*True or False"):
            load_config(opts=[name, value])


@pytest.mark.parametrize("size", [1, 4, 96, 8192, 2**40, -128, 0])
def test_a_block_is_of_a_size_that_can_be_run(size):
    with pytest.raises(ValueError, match=f"BLOCK_SIZE is {size}; it must be a power of two from"):
        load_config(opts=["MODEL.BLOCKCOPY.BLOCK_SIZE", str(size)])


def test_floats_of_detectron2_may_be_whole(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "VERSION: 2\nSOLVER:\n  BASE_LR: 1\nMODEL:\n  PIXEL_STD: [58, 57, 57]\n"
    )
    cfg = load_config(str(tmp_path / "config.yaml"), ["MODEL.RPN.NMS_THRESH", "1"])
    assert cfg.SOLVER.BASE_LR == 1.0 and type(cfg.SOLVER.BASE_LR) is float
    assert cfg.MODEL.PIXEL_STD == [58.0, 57.0, 57.0] and cfg.MODEL.RPN.NMS_THRESH == 1.0


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(KEYS)), PLAIN)
def test_a_key_takes_a_value_of_its_type_or_names_it(name, value):
    try:
        cfg = load_config(opts=[name, value])
    except ValueError as error:
        assert str(error).startswith(f"{name} is ")
    else:
        default, taken = KEYS[name].default, functools.reduce(getattr, name.split("."), cfg)
        assert type(taken) is type(default)
        assert not isinstance(taken, float) or math.isfinite(taken)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.recursive(PLAIN, lambda x: st.dictionaries(NAMES, x, max_size=3), max_leaves=6))
def test_a_yaml_file_is_merged_or_named(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("fuzz") / "config.yaml"
    file.write_text(yaml.safe_dump(content))
    try:
        load_config(str(file))
    except (KeyError, OSError, ValueError) as error:
        assert str(error)


CODE = {
    "apply": "!!python/object/apply:os.mkdir [{}]",
    "new": "!!python/object/new:os.mkdir [{}]",
    "nested": "{{a: [1, !!python/object/apply:os.mkdir [{}]]}}",
    "eval": '!!python/object/apply:eval [\'__import__("os").mkdir("{}")\']',
}


def malicious(folder, kind, *, key="OUTPUT_DIR"):
    marker, file = folder / "executed", folder / f"{kind}.yaml"
    file.write_text(f"VERSION: 2\n{key}: {CODE[kind].format(marker)}\n")
    return marker, file


class TestNoCodeOfAConfigIsExecuted:
    @pytest.mark.parametrize("kind", CODE)
    def test_directly_or_through_a_base(self, kind, tmp_path):
        marker, file = malicious(tmp_path, kind)
        (tmp_path / "middle.yaml").write_text(f"_BASE_: {file.name}\n")
        (tmp_path / "top.yaml").write_text("_BASE_: ./middle.yaml\nVERSION: 2\n")
        (tmp_path / "list.yaml").write_text(f"_BASE_: [middle.yaml, {file}]\nVERSION: 2\n")
        for name in (file.name, "middle.yaml", "top.yaml", "list.yaml"):
            with pytest.raises(ValueError, match=f"{name} is not loaded.* execute code"):
                load_config(str(tmp_path / name))
        assert not marker.exists()

    def test_as_an_old_version_or_in_an_override(self, tmp_path):
        marker, file = malicious(tmp_path, "apply")
        file.write_text(file.read_text().replace("VERSION: 2", "VERSION: 1"))
        with pytest.raises(ValueError, match="is not loaded"):
            load_config(str(file))
        load_config(opts=["OUTPUT_DIR", CODE["apply"].format(marker)])
        assert not marker.exists()

    def test_under_the_name_of_a_config_of_the_zoo(self, tmp_path):
        (tmp_path / "Base-RetinaNet.yaml").write_text(malicious(tmp_path, "apply")[1].read_text())
        with pytest.raises(ValueError, match="is not loaded"):
            load_config(str(tmp_path / "Base-RetinaNet.yaml"))
        assert not (tmp_path / "executed").exists()

    def test_by_a_command(self, tmp_path, monkeypatch):
        marker, file = malicious(tmp_path, "apply")
        with pytest.raises(ValueError, match="is not loaded"):
            setup(default_argument_parser().parse_args(["--config-file", str(file)]))
        with pytest.raises(ValueError, match="is not loaded"):
            load_video_config(str(file))
        for command in (demo, report):
            video = ["--video-input", __file__]
            page = ["--output", str(tmp_path / "a.html")] if command is report else []
            monkeypatch.setattr("sys.argv", ["run", "--config-file", str(file), *video, *page])
            with pytest.raises(SystemExit, match="is not loaded"):
                command.main()
        assert not marker.exists()


def test_every_config_of_the_zoo_loads():
    zoo = Path(model_zoo.__file__).parent / "configs"
    names = sorted(path.relative_to(zoo).as_posix() for path in zoo.rglob("*etina*.yaml"))
    assert len(names) >= 3
    for name in names:
        expected = get_cfg()
        expected.merge_from_file(str(zoo / name))
        found = load_config(str(zoo / name))
        assert found.MODEL.ANCHOR_GENERATOR == expected.MODEL.ANCHOR_GENERATOR
        assert found.MODEL.WEIGHTS == expected.MODEL.WEIGHTS


def test_an_old_config_is_brought_up_to_date(tmp_path):
    file = tmp_path / "old.yaml"
    file.write_text("VERSION: 1\nMODEL:\n  WEIGHT: a.pkl\nSOLVER:\n  BASE_LR: 1\n")
    cfg = load_config(str(file))
    assert cfg.MODEL.WEIGHTS == "a.pkl" and cfg.SOLVER.BASE_LR == 1.0 and cfg.VERSION == 2
    for version in ("3", "0", "x", "[1]"):
        file.write_text(f"VERSION: {version}\n")
        with pytest.raises(ValueError, match="VERSION is"):
            load_config(str(file))


@pytest.mark.parametrize("content", ["_BASE_: self.yaml\n", "_BASE_: 3\n", "A: &a [*a]\n"])
def test_a_config_that_holds_itself_is_named(tmp_path, content):
    (tmp_path / "self.yaml").write_text(f"VERSION: 2\n{content}")
    with pytest.raises((ValueError, KeyError)) as error:
        load_config(str(tmp_path / "self.yaml"))
    assert "self.yaml" in str(error.value) or "key A" in str(error.value)


def test_a_model_is_not_built_of_a_value_out_of_range():
    cfg = load_config(config_path("StreetClips/mask_rcnn_R_18_FPN.yaml"), ON)
    cfg.MODEL.BLOCKCOPY.SCENE_CUT = float("nan")
    with pytest.raises(ValueError, match="SCENE_CUT is nan; it must be a finite number"):
        build_model(cfg)
