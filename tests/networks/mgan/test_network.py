"""The backbone and the RPN of MGAN run block-sparse by the engine's general rules."""

import pytest
import torch
from detectron2.modeling import build_model
from torch.utils.flop_counter import FlopCounterMode

from blockcopy_d2.config import base_config
from blockcopy_d2.engine import load_config
from blockcopy_d2.networks.mgan.vgg import VGG16
from blockcopy_d2.resources import config_path
from blockcopy_d2.sparse import BlockGrid, BlockSparseModule
from tests.networks.mgan.small import CONFIG, small_mgan
from tests.sparse.test_networks import check_model


@pytest.fixture(scope="module")
def model():
    return small_mgan()


@pytest.mark.parametrize("block_size", [32, 64, 128])
def test_matches_oracle(model, block_size):
    check_model(model, (205, 333), block_size)


def test_batch_of_two_streams(model):
    check_model(model, (112, 176), 64, batch=2)


def test_matches_oracle_with_batch_norm():
    check_model(small_mgan("MODEL.BLOCKCOPY.VGG.NORM", "BN"), (96, 136), 64)


def programs(model, size):
    """The programs of backbone and RPN head for images of ``size``; nothing is computed."""
    grid = BlockGrid.full(block_size=128, image_size=size)
    channels = model.backbone.output_shape()["conv5"].channels
    features = torch.empty(1, channels, size[0] // 8, size[1] // 8)
    rpn_head = model.proposal_generator.rpn_head
    return grid, [
        BlockSparseModule(model.backbone).program((torch.empty(1, 3, *size),), {}, grid),
        BlockSparseModule(rpn_head).program(([features],), {}, grid),
    ]


def test_every_operator_is_block_sparse(model):
    _, found = programs(model, (256, 384))
    for program in found:
        assert program.operators and not program.densified
        strides = [program.values[operator.output].stride for operator in program.operators]
        assert None not in strides


def test_multiply_accumulates_at_full_size():
    model = build_model(base_config(load_config(config_path(CONFIG), ["MODEL.DEVICE", "cpu"])))
    grid, found = programs(model.eval(), (1024, 2048))
    macs = sum(program.macs(grid)[1] for program in found)
    assert macs / 1e9 == pytest.approx(894, rel=0.01)
    heads = model.roi_heads.to("meta")
    with FlopCounterMode(display=False) as counter:
        x, _ = heads.attention.weigh(torch.empty(1, 512, 7, 7, device="meta"))
        heads.box_predictor(heads.box_head(x))
    per_proposal = counter.get_total_flops() / 2e9
    assert per_proposal == pytest.approx(0.258, abs=5e-4)
    # Table 1 has 1104 with heads.
    assert (1104 - macs / 1e9) / per_proposal == pytest.approx(815, abs=1)


def test_backbone_shapes(model):
    assert model.backbone(torch.zeros(1, 3, 64, 96))["conv5"].shape == (1, 16, 8, 12)
    assert model.backbone.size_divisibility == 8


def test_the_first_stages_can_be_frozen():
    vgg = VGG16(3, (4, 4, 4, 4, 4)).freeze(2)
    trained = {name.split(".")[0] for name, p in vgg.named_parameters() if p.requires_grad}
    assert trained == {
        "conv3_1",
        "conv3_2",
        "conv3_3",
        "conv4_1",
        "conv4_2",
        "conv4_3",
        "conv5_1",
        "conv5_2",
        "conv5_3",
    }
