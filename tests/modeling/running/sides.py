"""Runs a clip in two ways, operator by operator and as graphs, and compares the results."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch.nn import functional as F

from blockcopy_d2.engine.defaults import load_config
from blockcopy_d2.modeling import VideoOptions
from blockcopy_d2.modeling.tasks import proposal_instances
from blockcopy_d2.motion import build_motion
from blockcopy_d2.policy import build_policy
from blockcopy_d2.resources import config_path
from tests.modeling.fixed_shape.models import spread_outputs
from tests.small_model import CONFIG, small_model_opts
from tests.sparse.networks import randomize

SIZE, BLOCK = (128, 256), 64


class Side:
    """
    One of the two ways to run a clip: with the small Mask R-CNN, or a network by its config and
    overrides that make it small.
    """

    def __init__(self, folder, built, device, *opts, graph, learns=True, network=None):
        opts = [*opts, "MODEL.BLOCKCOPY.CUDA_GRAPH", graph, "MODEL.DEVICE", device]
        path, *small = network or (CONFIG, *small_model_opts(folder))
        switch = ["MODEL.BLOCKCOPY.ENABLED", True]
        cfg = load_config(config_path(path), [str(x) for x in (*small, *switch, *opts)])
        self.cfg = cfg
        key = (device, graph, path, *map(str, network or ()))
        if key not in built:
            torch.manual_seed(0)
            built[key] = build_model(cfg)
            if network is None:
                weights = torch.load(cfg.MODEL.WEIGHTS, weights_only=True)["model"]
                built[key].load_state_dict(weights, strict=False)
            else:
                torch.manual_seed(0)
                randomize(built[key].base)
                if isinstance(built[key].base, DenseDetector):
                    spread_outputs(built[key].base, features=20.0)
        self.model = model = built[key]
        torch.manual_seed(0)
        model.policy = build_policy(cfg, num_classes=model.task.num_classes).to(device)
        model.options, model.motion = VideoOptions.from_config(cfg), build_motion(cfg)
        learns = learns and model.policy.learns
        self.learner = model.policy.learner_class(cfg, model.policy) if learns else None
        self.stream = model.init_state()

    def frame(self, image, grid=None, stream=None):
        stream = self.stream if stream is None else stream
        inputs = {"image": image, "height": image.shape[1], "width": image.shape[2]}
        result = self.model.step(inputs, stream, learner=self.learner, grid=grid)
        told = result.learned
        if not result.is_first:
            told = {**told, "block gain": self.model.information_gain(result)}
        return result, told


def sides(folder, built, device, *opts, **options):
    return [Side(folder, built, device, *opts, graph=graph, **options) for graph in (False, True)]


def clip(device, frames, size=SIZE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, *size), generator=generator).float()
    for shift in range(frames):
        moved = image.clone()
        moved[:, 30:90, 10 + 9 * shift : 60 + 9 * shift] = 20 * shift
        yield moved.to(torch.uint8).to(device)


def panning_clip(device, vectors, size=SIZE, seed=0):
    """A picture under a camera that moves by each of the vectors (dx, dy), one frame per vector and
    one before, with a square that moves by itself."""
    generator = torch.Generator().manual_seed(seed)
    world = 0
    for scale in (4, 16, 64):
        coarse = torch.rand(1, 3, 512 // scale, 640 // scale, generator=generator)
        world = world + F.interpolate(coarse, size=(512, 640), mode="bilinear")[0]
    x = y = 160
    for index, (dx, dy) in enumerate([(0, 0), *vectors]):
        x, y = x + dx, y + dy
        image = 100 + 20 * world[:, y : y + size[0], x : x + size[1]]
        image[:, 20:60, 10 + 7 * index : 50 + 7 * index] = 20 * index
        yield image.to(torch.uint8).to(device)


# Values that the learner reports, and their tolerance. Scores and the gain differ by rounding.
TOLD = {
    "gain": 0.02,
    "reward": 0.02,
    "entropy": 0.01,
    "cost": 1e-6,
    "moving_cost": 1e-6,
    "loss": 0.2,
    "skipped_updates": 0,
}
# Updated weights are compared by the sum of all differences, since a ReLU that rounding turns on or
# off changes a few gradients a lot.
UPDATE_SHARE = 0.1


def both(eager, graph, image, grid=None):
    """
    Runs a frame on both sides, and compares them. The learned weights are then made equal: steps of
    RMSprop have the size of the learning rate however small their gradient is, so that differences
    in rounding would grow to that within few frames.

    Returns:
        tuple: the results of both, each with what was learned of it.
    """
    sides = eager, graph
    number = eager.stream.frames if eager.stream.started else 0
    updates = number and eager.learner is not None and eager.learner.wants_graph()
    before = weights_of(eager)
    results = eager.frame(image, grid), graph.frame(image, grid)
    where = f"frame {number}{', which updates the policy' if updates else ''}"
    assert_same(*results, where)
    if eager.learner is None:
        return results
    changes = [weights_of(side) - before for side in sides]
    averages = [optimizer_state(side, "square_avg") for side in sides]
    for name, (expected, found) in {"the step": changes, "square_avg": averages}.items():
        distance, size = (found - expected).abs().sum().item(), expected.abs().sum().item()
        share = distance / size if size else distance
        assert share < UPDATE_SHARE, f"{where}: {name} of the weights is off by {share:.3g}"
    steps = [optimizer_state(side, "step").tolist() for side in sides]
    assert steps[1] == steps[0], f"{where}: steps taken"
    states = (side.learner.optimizer.state for side in sides)
    for (other, state), (own, own_state) in zip(*(x.items() for x in states), strict=True):
        own.data.copy_(other.data)
        own_state["square_avg"].copy_(state["square_avg"])
    return results


def weights_of(side):
    parameters = [p.detach().flatten() for p in side.model.policy.parameters()]
    return torch.cat(parameters).clone() if parameters else None


def optimizer_state(side, name):
    side.learner.updates.wait()
    return torch.cat([x[name].flatten() for x in side.learner.optimizer.state.values()])


def assert_same(eager, graph, where="the frame"):
    """Compares two results and what was learned from each; reports all differences."""
    (expected, told), (found, found_told) = eager, graph
    assert not hasattr(expected, "_graph") and hasattr(found, "_graph"), "both ran the same way"
    assert set(found.seconds) == set(expected.seconds), where
    assert found.is_first == expected.is_first, where
    assert found_told.keys() == told.keys(), where
    for name in ("observation", "decision", "field"):
        assert (getattr(found, name) is None) == (getattr(expected, name) is None), (where, name)
    differences = []

    def compare(name, found, expected, atol=0.0, rtol=0.0):
        difference = _difference(found, expected, atol, rtol)
        if difference:
            differences.append(f"{name}: {difference}")

    compare("frame", found.frame, expected.frame, 1e-4, 1e-5)
    if expected.field is not None:
        compare("field", found.field, expected.field)
    if found.observation is not None:
        seen, other = found.observation, expected.observation
        compare("observation.frame", seen.frame, other.frame, 1e-4, 1e-5)
        compare("observation.frame_state", seen.frame_state, other.frame_state, 1e-4, 1e-5)
        compare("observation.grid", seen.grid, other.grid)
        # A pixel on the edge of a mask may be in or out.
        share = ((seen.output - other.output).abs() > 1e-3).float().mean()
        compare("pixels that differ in observation.output", share, 0.0, 1e-3)
    if found.decision is not None:
        logits, other = found.decision.logits, expected.decision.logits
        assert (logits is None) == (other is None), where
        # An update computes them again, with its new weights.
        if logits is not None and not logits.requires_grad:
            compare("decision.logits", logits, other, 0.02, 0.01)
        compare("decision.active", found.decision.active, expected.decision.active)
    for name in ("cut", "broken", "age", "macs", "dense_macs", "policy_macs"):
        compare(name, getattr(found, name), getattr(expected, name))
    compare("grid.active", found.grid.active, expected.grid.active)
    assert (found.gain is None) == (expected.gain is None), where
    if expected.gain is not None:
        compare("gain", found.gain, expected.gain, 0.02, 0.01)
    if "block gain" in told:
        compare("block gain", found_told["block gain"], told["block gain"], 0.02, 0.01)
    for name, atol in TOLD.items():
        if name in told:
            compare(f"learner's {name}", found_told[name], told[name], atol)
    if differences:
        pytest.fail("\n".join([f"{where}: as a graph, instead of eager", *differences]))
    assert_same_output(expected, found)


def _difference(found, expected, atol, rtol):
    """str or None: where two tensors or numbers differ most."""
    found, expected = (torch.as_tensor(x).detach().double().cpu() for x in (found, expected))
    if found.shape != expected.shape:
        return f"shape {tuple(found.shape)} instead of {tuple(expected.shape)}"
    close = torch.isclose(found, expected, atol=atol, rtol=rtol, equal_nan=True)
    if close.all():
        return None
    # Values that are finite on one side only are farthest off.
    distance = (found - expected).abs().nan_to_num(nan=torch.inf).masked_fill(close, -1)
    place = torch.unravel_index(distance.argmax(), distance.shape)
    values = f"{found[place].item():.6g} instead of {expected[place].item():.6g}"
    if not found.dim():
        return values
    index = tuple(int(x) for x in place)
    return f"{values} at {index}, {(~close).sum()} of {close.numel()} differ"


def as_instances(proposals):
    """Proposals as instances of one class, to be compared as such."""
    instances = proposal_instances(proposals)
    instances.pred_classes = torch.zeros_like(instances.scores, dtype=torch.int64)
    return instances


def assert_same_output(expected, found):
    assert list(found) == list(expected)
    if "sem_seg" in found:
        close = {"atol": 1e-3, "rtol": 1e-3}
        torch.testing.assert_close(found["sem_seg"], expected["sem_seg"], **close)
    if "panoptic_seg" in found:
        (segments, infos), (others, expected_infos) = (x["panoptic_seg"] for x in (found, expected))
        assert (segments != others).float().mean() < 1e-2 and len(infos) == len(expected_infos)
    if "proposals" in found:
        found, expected = ({"instances": as_instances(x["proposals"])} for x in (found, expected))
    if "instances" not in found:
        return
    expected, found = expected["instances"], found["instances"]
    assert len(found) == len(expected) and found.image_size == expected.image_size
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=1e-3)
    assert torch.equal(found.pred_classes, expected.pred_classes)
    boxes, others = found.pred_boxes.tensor, expected.pred_boxes.tensor
    torch.testing.assert_close(boxes, others, atol=0.1, rtol=1e-3)
    if expected.has("pred_keypoints"):
        keypoints, others = (x.pred_keypoints for x in (found, expected))
        assert keypoints.shape == others.shape
        assert ((keypoints - others).abs().amax(dim=2) > 0.1).float().mean() < 0.05
    assert found.has("pred_masks") == expected.has("pred_masks")
    if len(found) and found.has("pred_masks"):
        assert found.pred_masks.shape == expected.pred_masks.shape
        assert (found.pred_masks != expected.pred_masks).float().mean() < 1e-3
