"""A frame without a host in the loop gives what step() gives, and teaches the policy the same."""

import copy

import pytest
import torch
from detectron2.modeling import build_model

from blockcopy_d2.engine.defaults import load_config
from blockcopy_d2.modeling import VideoStream
from blockcopy_d2.modeling.frame_graph import FrameGraph
from blockcopy_d2.modeling.learning import learn
from blockcopy_d2.policy import OnlineLearner
from blockcopy_d2.resources import config_path
from tests.small_model import CONFIG, small_model_opts

SIZE = (128, 256)
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def build(folder, device, *opts):
    opts = [*small_model_opts(folder), "MODEL.BLOCKCOPY.ENABLED", True, *opts]
    cfg = load_config(config_path(CONFIG), [*opts, "MODEL.DEVICE", device])
    torch.manual_seed(0)
    model = build_model(cfg)
    weights = torch.load(cfg.MODEL.WEIGHTS, weights_only=True)["model"]
    model.load_state_dict(weights, strict=False)
    return model, OnlineLearner(cfg, model.policy)


def clip(device, frames):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, *SIZE), generator=generator).float()
    for shift in range(frames):
        moved = image.clone()
        moved[:, 30:90, 10 + 9 * shift : 60 + 9 * shift] = 20 * shift
        yield moved.to(torch.uint8).to(device)


@pytest.mark.parametrize("device", DEVICES)
def test_same_as_step(tmp_path, device):
    opts = ("MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY", 2, "MODEL.BLOCKCOPY.LEARNER.LR", 0.01)
    model, learner = build(tmp_path, device, *opts)
    other, other_learner = build(tmp_path, device, *opts)
    graph = FrameGraph(other, image_shape=(3, *SIZE), learner=other_learner)
    before = copy.deepcopy(other.policy.state_dict())
    stream = VideoStream()
    grids = []
    for index, image in enumerate(clip(device, 9)):
        inputs = {"image": image, "height": SIZE[0], "width": SIZE[1]}
        result = model.step(inputs, stream, learning=learner.wants_graph())
        learn(learner, model, [result])
        detections = graph.step(image)
        assert torch.equal(graph.executed, result.grid.active)
        (found,) = detections.to_instances()
        expected = result.output["instances"]
        assert len(found) == len(expected) > 0
        torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=1e-3)
        different = (found.pred_masks != expected.pred_masks).float().mean()
        assert different < 1e-3
        if index:
            gain = model.information_gain(result)
            torch.testing.assert_close(graph.gain, gain, atol=2e-2, rtol=1e-2)
        grids.append(result.grid.active)
    assert other_learner.frames == learner.frames == 8
    assert any(not grid.all() for grid in grids[1:])
    for name, value in model.policy.state_dict().items():
        assert not torch.equal(other.policy.state_dict()[name], before[name])
        torch.testing.assert_close(other.policy.state_dict()[name], value, atol=5e-2, rtol=5e-2)


@pytest.mark.parametrize("device", DEVICES)
def test_a_restart_runs_all_blocks_and_teaches_nothing(tmp_path, device):
    model, learner = build(tmp_path, device)
    graph = FrameGraph(model, image_shape=(3, *SIZE), learner=learner)
    images = list(clip(device, 6))
    first = [graph.step(image) and graph.executed.clone() for image in images][0]
    assert first.all() and learner.frames == 5
    graph.step(images[0], restart=True)
    assert graph.executed.all() and learner.frames == 5
    (again,) = graph.detections.to_instances()
    expected = model.base([{"image": images[0], "height": SIZE[0], "width": SIZE[1]}])
    torch.testing.assert_close(again.scores, expected[0]["instances"].scores, atol=1e-4, rtol=1e-3)
    graph.step(images[1])
    assert learner.frames == 6
