"""The budget holds for boxes, masks, segmentation and panoptic models, with the same defaults."""

import pytest
import torch

from blockcopy_d2.engine import load_config
from blockcopy_d2.engine.runs import build_learner
from tests.modeling.test_meta_arch import build_pair

TARGETS = [0.05, 0.3, 0.7]
OPTS = [
    *("MODEL.BLOCKCOPY.POLICY.NAME", "ExpectedGain"),
    *("MODEL.BLOCKCOPY.MOTION.NAME", "BlockMatching"),
    *("MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY", "2"),
    *("MODEL.BLOCKCOPY.BLOCK_SIZE", "32"),
    *("MODEL.BLOCKCOPY.SCENE_CUT", "0.0"),
]


def moving_frames(number, size=(96, 160)):
    """Noise that comes and goes over a moving picture: busy frames and quiet ones."""
    generator = torch.Generator().manual_seed(0)
    world = torch.rand(3, size[0], size[1] + 4 * number, generator=generator) * 200
    for index in range(number):
        image = world[:, :, 4 * index : 4 * index + size[1]]
        noise = torch.rand(3, *size, generator=generator) * (50 if index % 5 == 0 else 1)
        yield {"image": (image + noise).clamp(0, 255).to(torch.uint8)}


@pytest.mark.parametrize("name", ["mask-rcnn", "retinanet", "semantic", "panoptic"])
def test_the_budget_holds_for_every_task(name):
    """It holds from the first frame after a start or a new target on."""
    model, _ = build_pair(name, *OPTS)
    learner = build_learner(load_config(opts=["MODEL.BLOCKCOPY.ENABLED", "True"]), model.policy)
    stream, executed, measured = model.init_state(), {}, 0
    inputs = iter(moving_frames(1 + 6 * len(TARGETS)))
    model.step(next(inputs), stream, learner=learner)
    for target in TARGETS:
        learner.target = target
        results = [model.step(next(inputs), stream, learner=learner) for _ in range(6)]
        executed[target] = sum(result.executed for result in results) / len(results)
        blocks = results[-1].grid.active.numel()
        assert abs(executed[target] - target) < 1 / (6 * blocks) + 1e-6, target
        for result in results:
            assert result.executed <= 2 * target + 1e-6
            assert (result.gain[result.grid.active] >= 0).all(), (
                "gains of executed blocks are known"
            )
            measured += float(result.learned["gain"])
    assert measured > 0 and model.policy.network.correction.any()


@pytest.mark.parametrize("policy", ["ExpectedGain", "MovedDifference"])
def test_refreshes_are_part_of_the_budget(policy):
    """A fifth of the blocks, where each block has to run in every fifth frame."""
    opts = ["MODEL.BLOCKCOPY.POLICY.NAME", policy, "MODEL.BLOCKCOPY.TARGET", "0.2"]
    model, _ = build_pair("retinanet", *OPTS, *opts, "MODEL.BLOCKCOPY.REFRESH_EVERY", "5")
    stream, inputs = model.init_state(), moving_frames(13)
    model.step(next(inputs), stream)
    results = [model.step(frame, stream) for frame in inputs]
    assert [int(result.grid.active.sum()) for result in results] == [3] * 12
    assert max(int(result.age.max()) for result in results) <= 4
