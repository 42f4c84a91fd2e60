"""Conversions: what they account for, and refuse."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from blockcopy_d2.checkpoint_conversion import (
    MAPPINGS,
    ConversionError,
    Mapping,
    convert_state_dict,
    load_public_state_dict,
)
from blockcopy_d2.engine import load_config
from blockcopy_d2.engine.checkpoint import SafeCheckpointer, WeightsCheckpointer
from blockcopy_d2.resources import config_path, shipped_configs
from tests.networks.checkpoints.published import PublishedCSP, PublishedMGAN
from tests.networks.checkpoints.published_swiftnet import PublishedOrsicSwiftNet
from tests.networks.csp.small import OPTS, small_csp
from tests.networks.mgan import small as mgan

ROOT = Path(__file__).resolve().parents[3]

MAPPING = Mapping(
    source="a network",
    config_file="",
    names=((r"first\.(\w+)", r"conv.\1"), (r"second\.(\w+)", r"bn.\1")),
    transforms=((r"first\.bias", lambda x: x.flip(0)),),
    ignored=(r"classifier\..*",),
)


@pytest.fixture
def source():
    return nn.ModuleDict({"conv": nn.Conv2d(2, 3, 1), "bn": nn.BatchNorm2d(3)}).state_dict()


@pytest.fixture
def target():
    return nn.ModuleDict({"first": nn.Conv2d(2, 3, 1), "second": nn.BatchNorm2d(3)}).state_dict()


def test_tensors_change_their_names(source, target):
    converted = convert_state_dict(MAPPING, source, target)
    assert converted.keys() == target.keys()
    assert torch.equal(converted["first.weight"], source["conv.weight"])
    assert torch.equal(converted["first.bias"], source["conv.bias"].flip(0))
    converted["first.weight"].zero_()
    assert source["conv.weight"].any(), "the source must not change with the result"


def test_counters_of_batch_norm_may_be_missing(source, target):
    del source["bn.num_batches_tracked"]
    converted = convert_state_dict(MAPPING, source, target)
    assert converted["second.num_batches_tracked"] == 0
    target = {name: x for name, x in target.items() if "num_batches" not in name}
    source["bn.num_batches_tracked"] = torch.tensor(5)
    assert convert_state_dict(MAPPING, source, target).keys() == target.keys()


def test_missing_unknown_and_misshapen_keys_are_listed_together(source, target):
    del source["bn.weight"], source["bn.running_var"]
    source["neck.weight"] = torch.zeros(1)
    source["conv.bias"] = torch.zeros(4)
    with pytest.raises(ConversionError) as error:
        convert_state_dict(MAPPING, source, target)
    message = str(error.value)
    assert "bn.running_var (for second.running_var)\n  bn.weight (for second.weight)" in message
    assert "Unknown keys:\n  neck.weight" in message
    assert "conv.bias (for first.bias): (4,), expected (3,)" in message
    assert "a network" in message


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x: x.to(torch.complex64), "complex64, expected float32"),
        (lambda x: x.int(), "int32, expected float32"),
        (lambda x: x.index_fill(0, torch.tensor([1]), torch.nan), "1 of 3 not finite"),
        (lambda x: x.double() * 1e300, "3 of 3 not finite"),
    ],
)
def test_numbers_that_are_no_weights_are_listed(source, target, change, message):
    source["conv.bias"] = change(torch.ones(3))
    with pytest.raises(ConversionError, match=rf"conv.bias \(for first.bias\): {message}"):
        convert_state_dict(MAPPING, source, target)


def test_an_override_that_contradicts_the_source_is_refused(tool, tmp_path):
    key = "MODEL.BLOCKCOPY.MGAN.ATTENDED"
    arguments = ["mgan", str(tmp_path / "public.pth"), str(tmp_path / "ours.pth")]
    with pytest.raises(ValueError, match=f"{key} is regions in --opts, .*need convolved"):
        tool.main(tool.argument_parser().parse_args([*arguments, "--opts", key, "regions"]))


@pytest.mark.parametrize("content", [b"", b"hello"])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, content):
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(ConversionError, match=r"model.pth cannot be read .*\(\w+Error: .*whole"):
        load_public_state_dict(tmp_path / "model.pth")


def test_what_a_table_ignores_is_not_unknown(source, target):
    source["classifier.weight"] = torch.zeros(1)
    assert convert_state_dict(MAPPING, source, target).keys() == target.keys()


def test_a_table_without_a_row_for_a_name_of_ours(source, target):
    target["third.weight"] = torch.zeros(1)
    with pytest.raises(ConversionError, match="third.weight"):
        convert_state_dict(MAPPING, source, target)


def test_names_stay_the_same_in_any_wrapping(tmp_path, source):
    file = tmp_path / "model.pth"
    parallel = {f"module.{name}": x for name, x in source.items()}
    meta = {"epoch": 3, "CLASSES": ("person",)}
    for content in (
        source,
        {"state_dict": source, "meta": meta, "optimizer": {"state": {}}},
        {"model": source},
        {"state_dict": parallel},
    ):
        torch.save(content, file)
        loaded = load_public_state_dict(file)
        assert loaded.keys() == source.keys()
        assert torch.equal(loaded["conv.weight"], source["conv.weight"])


class Touch:
    """Leaves a file behind if its pickle is executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_no_code_in_a_checkpoint_is_run(tmp_path, source):
    file, trace = tmp_path / "model.pth", tmp_path / "trace"
    torch.save({"state_dict": source, "hook": Touch(trace)}, file)
    with pytest.raises(ConversionError, match="model.pth"):
        load_public_state_dict(file)
    assert not trace.exists()


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [torch.zeros(1)], {"state_dict": {"a": 1}}])
def test_a_file_without_a_state_dict(tmp_path, content):
    file = tmp_path / "model.pth"
    torch.save(content, file)
    with pytest.raises(ConversionError, match="no state dict"):
        load_public_state_dict(file)


@pytest.mark.parametrize("name", MAPPINGS)
def test_every_network_has_a_config(name):
    assert MAPPINGS[name].config_file in shipped_configs()


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("tool", ROOT / "tools/convert_checkpoint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_help_tells_every_network_and_argument(tool):
    text = tool.argument_parser().format_help()
    for word in (*MAPPINGS, "input", "output", "--config-file", "--opts"):
        assert word in text
    for mapping in MAPPINGS.values():
        assert mapping.config_file in text and mapping.source in text


def test_from_file_to_file(tool, tmp_path):
    published = PublishedCSP()
    torch.save({"state_dict": published.state_dict()}, tmp_path / "public.pth")
    output = tmp_path / "folder" / "ours.pth"
    arguments = ["csp", str(tmp_path / "public.pth"), str(output), "--opts", *OPTS]
    count = tool.main(tool.argument_parser().parse_args(arguments))
    model = small_csp()
    state = torch.load(output, weights_only=True)["model"]
    model.load_state_dict(state, strict=True)
    assert count == len(model.state_dict())
    weight = published.backbone.layer4[2].conv2.weight
    assert torch.equal(model.backbone.bottom_up.res5[2].conv2.weight, weight)


@pytest.mark.parametrize("source, form", [("mgan", "convolved"), ("mgan_leotju", "regions")])
def test_weights_know_the_config_keys_they_need(tool, tmp_path, source, form, caplog, capsys):
    torch.save(PublishedMGAN(channels=(8, 8, 16, 16, 16)).state_dict(), tmp_path / "public.pth")
    output = tmp_path / "ours.pth"
    arguments = [source, str(tmp_path / "public.pth"), str(output), "--opts", *mgan.OPTS]
    tool.main(tool.argument_parser().parse_args(arguments))
    key = "MODEL.BLOCKCOPY.MGAN.ATTENDED"
    assert capsys.readouterr().out.endswith(f"ours.pth: 46 tensors, for {key} {form}\n")
    assert torch.load(output, weights_only=True)["settings"] == {key: form}
    other = {"convolved": "regions", "regions": "convolved"}[form]
    model = mgan.small_mgan(key, form)
    WeightsCheckpointer(model).load(str(output))
    assert model.roi_heads.attention.attended == form
    with pytest.raises(ValueError, match=f"{key} is {other}, not {form}. Add {key} {form}"):
        WeightsCheckpointer(mgan.small_mgan(key, other)).load(str(output))
    # They may become the other form, to be trained further.
    SafeCheckpointer(mgan.small_mgan(key, other)).load(str(output))
    assert f"{key} is {other}, not {form}" in caplog.text


@pytest.mark.parametrize("name", MAPPINGS)
def test_the_config_of_a_source_has_the_keys_its_weights_need(name):
    cfg = load_config(config_path(MAPPINGS[name].config_file), ["MODEL.DEVICE", "cpu"])
    for key, value in MAPPINGS[name].settings:
        node = cfg
        for part in key.split("."):
            node = node[part]
        assert node == value, key


def test_a_checkpoint_of_another_source_is_told(tool, tmp_path):
    widths = {"stem": 64, "width": 64, "out_channels": 64, "features": 16}
    normalization = {"mean": [73.15, 82.90, 72.3], "std": [47.67, 48.49, 47.73]}
    published = PublishedOrsicSwiftNet(18, **widths, **normalization)
    public, output = tmp_path / "public.pt", tmp_path / "ours.pth"
    torch.save(published.state_dict(), public)
    files = [str(public), str(output), "--config-file", "Cityscapes/swiftnet_R_18.yaml"]
    opts = ["--opts", "MODEL.FPN.OUT_CHANNELS", "16"]
    with pytest.raises(ConversionError, match="It does fit swiftnet_orsic"):
        tool.main(tool.argument_parser().parse_args(["swiftnet", *files, *opts]))
    with pytest.raises(ConversionError, match="MODEL.PIXEL_MEAN"):
        tool.main(tool.argument_parser().parse_args(["swiftnet_orsic", *files, *opts]))
    assert not output.exists()
    files = files[:2]
    tool.main(tool.argument_parser().parse_args(["swiftnet_orsic", *files, *opts]))
    assert output.exists()


def test_a_checkpoint_of_another_network_writes_nothing(tool, tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "public.pth")
    output = tmp_path / "ours.pth"
    arguments = ["csp", str(tmp_path / "public.pth"), str(output), "--opts", *OPTS]
    with pytest.raises(ConversionError, match="neck.p3.weight"):
        tool.main(tool.argument_parser().parse_args(arguments))
    assert not output.exists()


@pytest.mark.parametrize("name", ["public.pth", "link.pth", "hard.pth", "folder/../public.pth"])
def test_the_public_checkpoint_is_not_replaced(tool, tmp_path, name):
    public = tmp_path / "public.pth"
    torch.save({"state_dict": PublishedCSP().state_dict()}, public)
    before = public.read_bytes()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.pth").symlink_to(public)
    (tmp_path / "hard.pth").hardlink_to(public)
    arguments = ["csp", str(public), str(tmp_path / name), "--opts", *OPTS]
    with pytest.raises(ValueError, match="is the input .*public.pth, which would be lost"):
        tool.main(tool.argument_parser().parse_args(arguments))
    assert public.read_bytes() == before


@pytest.mark.parametrize(
    "output, message",
    [
        ("folder", "is a folder; expected the name of a checkpoint"),
        ("http://u:s3cret@h/x.pth", r"http://\*\*\*@h/x.pth is an address"),
        ("public.pth/x.pth", "public.pth is a file"),
    ],
)
def test_outputs_that_cannot_be_are_named(tool, tmp_path, monkeypatch, output, message):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    torch.save({"state_dict": PublishedCSP().state_dict()}, "public.pth")
    arguments = ["csp", "public.pth", output, "--opts", *OPTS]
    with pytest.raises((ValueError, OSError), match=message):
        tool.main(tool.argument_parser().parse_args(arguments))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "public.pth"]
