"""Frames report their cost for all ways to run them; counting changes nothing."""

import threading

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import (
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
)
from torch import nn

from blockcopy_d2.modeling import MacCounter
from blockcopy_d2.modeling.fixed_shape.networks import BoxNetwork, MaskNetwork
from blockcopy_d2.policy import LearnedPolicy, NoBlocks, Observation
from blockcopy_d2.sparse.macs import count_macs
from tests.modeling.running.sides import clip, sides


def test_a_frame_counts_what_hooks_of_its_layers_count(folder, built, device):
    eager, _ = sides(folder, built, device, learns=False)
    for image in clip(device, 3):
        # Heads and policy are watched from outside; the rest counts itself.
        with MacCounter(eager.model) as watched:
            result, _ = eager.frame(image)
        macs = result.macs_per_stage
        assert list(macs) == ["policy", "network", "heads"]
        assert macs["network"] == result.macs and macs["heads"] > 0
        if device == "cpu":
            # On a GPU the policy runs as kernels, which no hook notices.
            assert macs["policy"] + macs["heads"] == watched.macs
    assert result.macs_per_stage["policy"] > 0


def test_a_recorded_frame_counts_the_same(folder, built, device):
    eager, graph = sides(folder, built, device, learns=False)
    for image in clip(device, 3):
        one, other = (side.frame(image)[0].macs_per_stage for side in (eager, graph))
        assert {**one, "heads": 0} == {**other, "heads": 0}
        # Fixed numbers of proposals and detections are the most there can be.
        assert other["heads"] >= one["heads"] > 0


def test_layers_that_end_with_a_relu_in_their_launch_are_counted(device):
    x = torch.randn(5, 16, 7, 7, device=device)
    box_head = FastRCNNConvFCHead(ShapeSpec(16, 7, 7), conv_dims=[8], fc_dims=[12, 10])
    options = {"num_classes": 3, "box2box_transform": Box2BoxTransform((1.0,) * 4)}
    predictor = FastRCNNOutputLayers(ShapeSpec(10), test_score_thresh=0.0, **options)
    boxes = nn.Sequential(box_head, predictor).to(device).requires_grad_(False)
    masks = MaskRCNNConvUpsampleHead(ShapeSpec(16, 7, 7), num_classes=3, conv_dims=[8, 16])
    masks.to(device).requires_grad_(False)
    with MacCounter(nn.ModuleList([boxes, masks])) as counter:
        boxes(x)
        masks.layers(x)
    box_network = BoxNetwork(box_head, predictor, 7, torch.float32)
    mask_network = MaskNetwork(masks, torch.float32)
    classes = torch.zeros(5, dtype=torch.int64, device=device)
    assert count_macs(lambda: (box_network(x), mask_network(x, classes))) == counter.macs


def test_policies_without_a_network_cost_nothing(folder, built, device):
    for side in sides(folder, built, device, "MODEL.BLOCKCOPY.POLICY.NAME", "NoBlocks"):
        assert isinstance(side.model.policy, NoBlocks)
        for image in clip(device, 2):
            result, _ = side.frame(image)
        assert result.macs_per_stage["policy"] == 0


def test_a_frame_leaves_no_hooks(folder, built, device):
    eager, _ = sides(folder, built, device, learns=False)
    for image in clip(device, 2):
        eager.frame(image)
    assert not any(module._forward_hooks for module in eager.model.modules())


def test_what_a_policy_costs_is_counted_once_per_shape(monkeypatch):
    policy = LearnedPolicy(num_classes=2)
    maps = [torch.zeros(1, channels, 64, 96) for channels in (3, 3, 2)]
    seen = Observation(*maps, grid=torch.zeros(1, 1, 2, 3), frame_index=1)
    with MacCounter(policy) as counter:
        macs = policy.macs(seen)
    assert macs == counter.macs > 0
    monkeypatch.setattr(policy, "network", None)
    assert policy.macs(seen) == macs


def test_other_threads_are_not_counted():
    layer = nn.Linear(4, 6)
    with MacCounter(layer) as counter:
        thread = threading.Thread(target=layer, args=(torch.zeros(1, 4),))
        thread.start()
        thread.join()
        assert counter.macs == 0
        layer(torch.zeros(1, 4))
    assert counter.macs == 24
