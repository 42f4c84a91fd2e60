"""Converted SwiftNet gives what the published network gives with the same weights."""

import pytest
import torch
from detectron2.modeling import build_model

from blockcopy_d2.checkpoint_conversion import (
    MAPPINGS,
    ConversionError,
    check_normalization,
    convert_state_dict,
)
from blockcopy_d2.engine import load_config
from blockcopy_d2.resources import config_path
from tests.networks.checkpoints.published_swiftnet import (
    PublishedOrsicSwiftNet,
    PublishedSwiftNet,
)
from tests.sparse.networks import randomize
from tests.sparse.test_networks import check_model

OPTS = ["MODEL.DEVICE", "cpu", "MODEL.FPN.OUT_CHANNELS", "16"]
BOTTLENECKS = [
    "MODEL.RESNETS.STEM_OUT_CHANNELS", "8",
    "MODEL.RESNETS.RES2_OUT_CHANNELS", "16",
    "MODEL.RESNETS.WIDTH_PER_GROUP", "4",
]  # fmt: skip
WIDTHS = {
    18: {"stem": 64, "width": 64, "out_channels": 64},
    50: {"stem": 8, "width": 4, "out_channels": 16},
}


def build(depth):
    torch.manual_seed(0)
    published = PublishedSwiftNet(depth, features=16, **WIDTHS[depth]).eval()
    randomize(published)
    opts = [*OPTS, *(BOTTLENECKS if depth == 50 else [])]
    cfg = load_config(config_path(f"Cityscapes/swiftnet_R_{depth}.yaml"), opts)
    return published, build_model(cfg).eval()


@torch.no_grad()
@pytest.mark.parametrize("depth", WIDTHS)
def test_the_same_logits(depth):
    published, model = build(depth)
    state = convert_state_dict(MAPPINGS["swiftnet"], published.state_dict(), model.state_dict())
    model.load_state_dict(state, strict=True)
    image = torch.randint(0, 256, (3, 256, 512)).float()
    found = model([{"image": image}])[0]["sem_seg"]
    expected = published(image)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def build_orsic(depth, *opts):
    torch.manual_seed(0)
    options = [*OPTS, *(BOTTLENECKS if depth == 50 else []), *opts]
    cfg = load_config(config_path(f"Cityscapes/swiftnet_R_{depth}_orsic.yaml"), options)
    normalization = {"mean": cfg.MODEL.PIXEL_MEAN, "std": cfg.MODEL.PIXEL_STD}
    published = PublishedOrsicSwiftNet(depth, features=16, **WIDTHS[depth], **normalization).eval()
    randomize(published)
    return published, build_model(cfg).eval()


@torch.no_grad()
@pytest.mark.parametrize("depth", WIDTHS)
def test_the_same_logits_as_its_own_authors_code(depth):
    published, model = build_orsic(depth)
    mapping = MAPPINGS["swiftnet_orsic"]
    state = convert_state_dict(mapping, published.state_dict(), model.state_dict())
    check_normalization(mapping, published.state_dict(), model)
    model.load_state_dict(state, strict=True)
    image = torch.randint(0, 256, (3, 256, 512)).float()
    found = model([{"image": image}])[0]["sem_seg"]
    expected = published(image)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    # The other form of bottleneck is another network.
    other = build_orsic(depth, "MODEL.BLOCKCOPY.SWIFTNET.RELU_BEFORE_ADDITION", "False")[1]
    other.load_state_dict(state, strict=True)
    difference = (other([{"image": image}])[0]["sem_seg"] - expected).abs().max()
    assert (difference > 0.05) == (depth == 50)


def test_a_relu_before_the_addition_matches_the_oracle():
    _, model = build_orsic(50)
    randomize(model)
    check_model(model, (128, 256), 64)


def test_another_normalization_is_refused():
    published, model = build_orsic(18)
    state = published.state_dict()
    check_normalization(
        MAPPINGS["swiftnet_orsic"], {name: x.half() for name, x in state.items()}, model
    )
    state["backbone.img_std"] = state["backbone.img_std"] + 1
    with pytest.raises(
        ConversionError, match=r"img_std.*MODEL.PIXEL_STD \"\[48.67, 49.49, 48.73\]\""
    ):
        check_normalization(MAPPINGS["swiftnet_orsic"], state, model)
    del state["backbone.img_mean"]
    with pytest.raises(ConversionError, match="it has no backbone.img_mean"):
        check_normalization(MAPPINGS["swiftnet_orsic"], state, model)


def test_other_forms_of_its_own_authors_are_refused_by_name():
    published, model = build_orsic(18)
    mapping, state, target = MAPPINGS["swiftnet_orsic"], published.state_dict(), model.state_dict()
    # Their release of 2019: other code normalizes, and the classifier is a 3x3 convolution.
    first = {name: x for name, x in state.items() if "img_" not in name}
    first["logits.conv.weight"] = torch.zeros(19, 16, 3, 3)
    del first["logits.conv.bias"]
    with pytest.raises(
        ConversionError, match=r"logits.conv.bias .*\n.*\n.*\(19, 16, 3, 3\), expected"
    ):
        convert_state_dict(mapping, first, target)
    # The pyramid: a normalization for every scale.
    pyramid = {name.replace("backbone.bn1.", "backbone.bn1.0."): x for name, x in state.items()}
    with pytest.raises(ConversionError, match=r"Unknown keys:\n.*backbone.bn1.0.bias"):
        convert_state_dict(mapping, pyramid, target)


def test_keys_that_do_not_fit_are_listed():
    published, model = build(50)
    state = published.state_dict()
    state["backbone.fc.weight"] = state.pop("spp.spp.spp_bn.norm.weight")
    with pytest.raises(ConversionError) as error:
        convert_state_dict(MAPPINGS["swiftnet"], state, model.state_dict())
    assert "spp.spp.spp_bn.norm.weight (for backbone.spp.project.norm.weight)" in str(error.value)
    assert "backbone.fc.weight" in str(error.value)
