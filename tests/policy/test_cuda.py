"""The policy's part of a frame on CUDA: the same results, and the host never waits."""

import copy

import pytest
import torch
from detectron2.structures import Boxes, Instances

from blockcopy_d2.policy import (
    DetectionMasks,
    ExpectedGain,
    FrameDifference,
    GainLearner,
    LearnedPolicy,
    Observation,
    OnlineLearner,
    RandomBlocks,
    instance_block_gain,
    instance_information_gain,
    paint_output,
    rasterize_instances,
    resize_to_policy,
    semantic_information_gain,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

GRID = (4, 6)
CANVAS = (480, 736)


@pytest.fixture
def no_waiting():
    """Any operation that makes the host wait for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def on_cuda(x):
    return x.to("cuda") if hasattr(x, "to") else x


def detections(seed, count=12):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * torch.tensor([300.0, 200.0])
    sizes = torch.rand(count, 2, generator=generator) * 200
    return Instances(
        (240, 368),
        pred_boxes=Boxes(torch.cat([corners, corners + sizes], dim=1)),
        pred_masks=torch.rand(count, 240, 368, generator=generator) > 0.6,
        scores=torch.rand(count, generator=generator),
        pred_classes=torch.randint(3, (count,), generator=generator),
    )


def outputs_of(current, previous, image):
    seen = []
    for instances in (current, previous):
        masks = rasterize_instances(
            instances, image_size=(470, 730), canvas_size=CANVAS, grid_shape=GRID
        )
        seen.append(DetectionMasks(masks, instances.scores, instances.pred_classes))
    logits = resize_to_policy(image, GRID)
    return [
        paint_output(seen[0].masks, seen[0].scores, seen[0].classes, 3),
        instance_information_gain(*seen),
        instance_block_gain(*seen, GRID),
        semantic_information_gain(logits[0].softmax(0), logits[1].softmax(0)),
    ]


@pytest.mark.parametrize("kind", ["pred_masks", "pred_boxes"])
@pytest.mark.parametrize("count", [0, 12])
def test_outputs_and_gains_are_those_of_the_cpu(no_waiting, kind, count):
    current, previous = detections(0, count), detections(1)
    if kind == "pred_boxes":
        current.remove("pred_masks")
        previous.remove("pred_masks")
    image = torch.randn(2, 3, *CANVAS, generator=torch.Generator().manual_seed(0))
    expected = outputs_of(current, previous, image)
    torch.cuda.set_sync_debug_mode("default")
    arguments = [on_cuda(x) for x in (current, previous, image)]
    torch.cuda.set_sync_debug_mode("error")
    found = outputs_of(*arguments)
    torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-5)


def test_learning_never_waits_and_follows_the_cpu():
    torch.manual_seed(0)
    policies = [LearnedPolicy(num_classes=3)]
    policies.append(copy.deepcopy(policies[0]).cuda())
    generator = torch.Generator().manual_seed(0)
    fields = {
        "frame": torch.randn(1, 3, 128, 192, generator=generator),
        "frame_state": torch.randn(1, 3, 128, 192, generator=generator),
        "output": torch.rand(1, 3, 128, 192, generator=generator),
        "grid": torch.ones(1, 1, *GRID),
    }
    gain = torch.rand(1, *GRID, generator=generator)
    active = torch.rand(1, *GRID, generator=generator) > 0.5
    logits = []
    for policy in policies:
        device = next(policy.parameters()).device
        learner = OnlineLearner(policy, target=0.3, update_every=1)
        seen = Observation(**{k: v.to(device) for k, v in fields.items()}, frame_index=1)
        gains = [gain.to(device), torch.full_like(gain, torch.nan, device=device)]
        fixed = active.to(device)
        baselines = [RandomBlocks(target=0.5), FrameDifference(target=0.5)]
        for drawing in [policy, *baselines]:
            drawing(seen)  # makes the random generators
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for baseline in baselines:
                baseline(seen)
            for value in gains:
                decision = policy(seen)
                decision.active = fixed
                metrics = learner.learn(decision, value)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert metrics["skipped_updates"].item() == 1
        with torch.no_grad():
            logits.append(policy(seen).logits.cpu())
    torch.testing.assert_close(*logits, rtol=0.05, atol=0.02)


def test_expected_gain_never_waits_and_follows_the_cpu():
    generator = torch.Generator().manual_seed(0)
    policies = [ExpectedGain(target=0.3), ExpectedGain(target=0.3).cuda()]
    fields = {
        "frame": torch.randn(2, 3, 128, 192, generator=generator),
        "frame_state": torch.randn(2, 3, 128, 192, generator=generator),
        "output": torch.rand(2, 3, 128, 192, generator=generator),
        "grid": torch.ones(2, 1, *GRID),
        "frame_index": torch.tensor([1, 5]),
        "age": torch.randint(0, 9, (2, *GRID), generator=generator),
        "gain": torch.rand(2, *GRID, generator=generator) - 0.2,
    }
    gain, results = torch.rand(2, *GRID, generator=generator), []
    for policy in policies:
        device = policy.network.correction.device
        learner = GainLearner(policy, target=0.3, update_every=1)
        seen = Observation(**{k: v.to(device) for k, v in fields.items()})
        value = gain.to(device)
        policy(seen)  # compiles
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            decision = policy(seen)
            learner.target = 0.4
            metrics = learner.learn(decision, value)
            later = policy(seen)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        results.append([decision.logits, metrics["loss"], later.logits, decision.active.float()])
    for own, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(own.cpu(), expected, rtol=1e-3, atol=1e-3)
