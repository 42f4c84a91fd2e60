import weakref

import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor

from blockcopy_d2.config import base_config
from blockcopy_d2.engine.defaults import load_config
from blockcopy_d2.engine.predictor import VideoPredictor
from blockcopy_d2.resources import config_path
from tests.small_model import CONFIG, small_model_opts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


def build(folder, *opts):
    switch = ["MODEL.BLOCKCOPY.ENABLED", "True"]
    cfg = load_config(config_path(CONFIG), [*small_model_opts(folder), *switch, *opts])
    return VideoPredictor(cfg)


def frames(number, size=(96, 160)):
    generator = np.random.default_rng(0)
    still = generator.integers(0, 255, (*size, 3), dtype=np.uint8)
    for index in range(number):
        image = still.copy()
        image[20:60, 10 + 8 * index : 50 + 8 * index] = 255
        yield image


def test_first_frame_executes_all_blocks_and_the_policy_chooses_after(folder):
    results = [result for _, result in build(folder).stream(frames(3))]
    assert results[0].grid.fraction == 1 and results[0].decision.logits is None
    assert all(result.decision.logits is not None for result in results[1:])
    assert results[0].output["instances"].image_size == (96, 160)


def test_policy_learns_and_the_task_network_does_not(folder):
    predictor = build(folder, "MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY", "2")
    before = {name: value.clone() for name, value in predictor.model.state_dict().items()}
    for _ in predictor.stream(frames(5)):
        pass
    after = predictor.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("policy.") for name in changed)
    trained = {name for name, _ in predictor.model.policy.named_parameters(prefix="policy")}
    assert trained & changed


def test_nothing_is_learned_when_learning_is_off(folder):
    predictor = build(folder, "MODEL.BLOCKCOPY.LEARNER.ENABLED", "False")
    parameters = [parameter.clone() for parameter in predictor.model.policy.parameters()]
    for _ in predictor.stream(frames(5)):
        pass
    assert predictor.learner is None
    for parameter, old in zip(predictor.model.policy.parameters(), parameters):
        assert torch.equal(parameter, old)


def test_all_blocks_are_the_dense_model(folder):
    predictor = build(folder, "MODEL.BLOCKCOPY.POLICY.NAME", "AllBlocks")
    cfg = base_config(load_config(config_path(CONFIG), small_model_opts(folder)))
    dense = DefaultPredictor(cfg)
    for image, result in predictor.stream(frames(3)):
        found, expected = result.output["instances"], dense(image)["instances"]
        assert len(found) == len(expected) > 0
        assert torch.allclose(found.scores, expected.scores, atol=1e-4)
        assert torch.allclose(found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-2)
    assert predictor.scale == pytest.approx(128 / 96)


def test_a_new_video_starts_with_all_blocks(folder):
    predictor = build(folder)
    for _ in range(2):
        first, second = [result for _, result in predictor.stream(frames(2))]
        assert first.previous_detections is None and first.grid.fraction == 1
        assert second.previous_detections is not None


def test_rgb_models_get_rgb(folder):
    image = next(frames(1))
    bgr = build(folder).mapper(image)["image"]
    rgb = build(folder, "INPUT.FORMAT", "RGB").mapper(image)["image"]
    assert not torch.equal(rgb, bgr) and torch.equal(rgb, bgr.flip(0))


def test_video_is_streamed(folder):
    class Frame(np.ndarray):
        """An array that can be referred to weakly."""

    seen = []

    def watched():
        for image in frames(12):
            image = image.view(Frame)
            seen.append(weakref.ref(image))
            yield image
            del image

    for _ in build(folder).stream(watched()):
        alive = sum(reference() is not None for reference in seen)
        # The one that runs, two that wait, and one in the hands of the decoding thread.
        assert alive <= 4, f"{alive} of {len(seen)} frames are kept"
    assert len(seen) == 12
