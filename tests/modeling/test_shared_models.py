"""
One model under everything that may happen around its frames: threads, weights that change, frames
that fail, other sizes, inference mode.
"""

import copy
import threading
from collections import deque

import pytest
import torch
from detectron2.data import transforms as T
from torch import nn

from blockcopy_d2.engine import VideoPredictor
from blockcopy_d2.engine.predictor import FrameMapper
from blockcopy_d2.modeling import learn
from blockcopy_d2.policy import NoBlocks, OnlineLearner
from blockcopy_d2.sparse import BlockGrid, module
from tests.modeling.running.conftest import *  # noqa: F403
from tests.modeling.running.sides import assert_same_output, clip, sides
from tests.modeling.test_meta_arch import assert_same, build_pair, frames


@pytest.fixture(scope="module")
def pair():
    return build_pair("mask-rcnn")


@pytest.fixture
def model(pair):
    """A model with a policy that executes nothing, so that other executed blocks stand out."""
    model, policy = pair[0], pair[0].policy
    model.policy = NoBlocks()
    weights = copy.deepcopy(model.state_dict())
    yield model
    model.policy, model.learner, model.amp = policy, None, False
    missing = model.load_state_dict(weights, strict=False).missing_keys
    assert all(key.startswith("policy.") for key in missing)


@pytest.fixture
def ways(request, folder, built, device):
    """The small Mask R-CNN frame by frame, and as graphs, with a policy that executes nothing."""
    both = sides(folder, built, device, "MODEL.BLOCKCOPY.POLICY.NAME", "NoBlocks")
    weights = copy.deepcopy(both[0].model.state_dict())
    yield both
    for side in both:
        side.model.load_state_dict(weights)


def in_threads(*functions):
    errors, barrier = [], threading.Barrier(len(functions))

    def run(function):
        try:
            barrier.wait()
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# ---------------------------------------------------------------- threads


def test_a_camera_in_one_thread_and_pictures_in_another(model, pair):
    camera, stills = frames(8), frames(10)
    with torch.no_grad():
        expected = [pair[1]([copy.deepcopy(inputs)])[0] for inputs in stills]
    alone, stream = [], model.init_state()
    for inputs in camera:
        alone.append(model.step(inputs, stream))
    model.backbone._programs.clear()  # A first frame is traced while the pictures run.
    found, seen, stream = [], [], model.init_state()

    def run_camera():
        seen.extend(model.step(inputs, stream) for inputs in camera)

    def run_stills():
        with torch.no_grad():
            found.extend(model([inputs])[0] for inputs in stills)

    in_threads(run_camera, run_stills)
    for first, second in zip(expected, found, strict=True):
        assert_same(first, second, exact=False)
    for first, second in zip(alone, seen, strict=True):
        assert_same(first.output, second.output, exact=False)
        assert first.executed == second.executed and first.macs == second.macs


def test_two_cameras_in_two_threads(model):
    clips = [frames(5), frames(5, size=(128, 192))]

    def run(name, inputs):
        return [model([{**x, "video_id": name, "frame_index": n}])[0] for n, x in enumerate(inputs)]

    expected = [run(f"alone {n}", inputs) for n, inputs in enumerate(clips)]
    found = {}
    in_threads(*(lambda n=n: found.update({n: run(f"both {n}", clips[n])}) for n in range(2)))
    for n in range(2):
        for first, second in zip(expected[n], found[n], strict=True):
            assert_same(first, second)


def test_two_threads_learn_one_policy(pair, model):
    model.policy = pair[0].policy = copy.deepcopy(build_pair("mask-rcnn")[0].policy)
    model.learner = OnlineLearner(model.policy, target=0.5, update_every=2)

    def run(name):
        for n, inputs in enumerate(frames(6)):
            model([{**inputs, "video_id": name, "frame_index": n}])

    in_threads(*(lambda name=name: run(name) for name in "ab"))
    assert model.learner.frames == 10


def test_threads_of_one_predictor(model):
    model.learner = None
    predictor = VideoPredictor(model=model)
    pictures = [x["image"].permute(1, 2, 0).numpy() for x in frames(4)]
    expected = [dict(result) for _, result in predictor.stream(pictures)]
    found = [[], [], []]

    def run(n):
        found[n].extend(dict(result) for _, result in predictor.stream(pictures))

    in_threads(*(lambda n=n: run(n) for n in range(3)))
    for results in found:
        for first, second in zip(expected, results, strict=True):
            assert_same(first, second)


def test_results_know_the_scale_of_their_own_frame(model):
    predictor = VideoPredictor(model=model, mapper=FrameMapper(augmentations=[T.Resize((64, 128))]))
    small, large = (
        x["image"].permute(1, 2, 0).numpy() for x in (*frames(1), *frames(1, (128, 256)))
    )
    streams = predictor.stream([small]), predictor.stream([large])
    results = [next(stream)[1] for stream in streams]
    assert [result.scale for result in results] == [0.64, 0.5]


def test_stages_of_a_frame_are_its_own(model):
    first, second = frames(2)
    stream = model.init_state()
    model.step(first, stream)
    timer_calls = []
    original = type(model.backbone).forward

    def slow(self, *args):
        # A picture of another thread, while the backbone of the frame runs.
        if threading.current_thread() is threading.main_thread():
            with torch.no_grad():
                in_threads(lambda: model([second]))
        timer_calls.append(threading.current_thread())
        return original(self, *args)

    type(model.backbone).forward = slow
    try:
        result = model.step(second, stream)
    finally:
        type(model.backbone).forward = original
    assert len(timer_calls) == 2
    seconds = [name for name, *_ in result.timer._intervals if name == "network"]
    assert len(seconds) == 2, "backbone and RPN head of the frame"


# ---------------------------------------------------------------- weights


def _load(base):
    state = base.backbone.bottom_up.state_dict()
    base.backbone.bottom_up.load_state_dict({k: v * 1.1 for k, v in state.items()})


def _multiply(base):
    with torch.no_grad():
        base.backbone.fpn_output2.weight.mul_(1.5)


def _data(base):
    predictor = base.roi_heads.box_predictor.cls_score
    predictor.weight.data = predictor.weight.data * 2


def _parameter(base):
    conv = base.proposal_generator.rpn_head.conv
    conv.weight = nn.Parameter(conv.weight * 2, requires_grad=False)


def _mean(base):
    base.pixel_mean = base.pixel_mean + 20


@pytest.mark.parametrize(
    "change",
    # `load_state_dict` copies into the parameters: it changes them in place, as the second does.
    [_load, pytest.param(_multiply, marks=pytest.mark.slow), _data, _parameter, _mean],
)
def test_other_weights_make_the_next_frame_whole(ways, device, change):
    images = list(clip(device, 4))
    for side in ways:
        other = side.model.init_state()
        results = [side.frame(image)[0] for image in images[:2]]
        side.frame(images[0], stream=other)
        assert [result.executed for result in results] == [1, 0]
        mean = side.model.base.pixel_mean
        weights = copy.deepcopy(side.model.state_dict())
        change(side.model.base)
        try:
            for stream in (side.stream, other):
                result = side.frame(images[2], stream=stream)[0]
                inputs = {"image": images[2], "height": 128, "width": 256}
                with torch.no_grad():
                    (expected,) = side.model([inputs])
                assert result.is_first and result.executed == 1
                assert_same_output(expected, result)
                assert side.frame(images[3], stream=stream)[0].executed == 0
        finally:
            side.model.base.pixel_mean = mean
            side.model.load_state_dict(weights)


def test_a_batch_notices_other_weights(model):
    first, second = frames(2)
    batch = model.init_state(2)
    for inputs in (first, second):
        results = model.step_batch([inputs, inputs], batch)
    assert [result.executed for result in results] == [0, 0]
    _load(model.base)
    results = model.step_batch([second, None], batch)
    assert results[0].is_first and results[0].executed == 1 and results[1] is None
    with torch.no_grad():
        assert_same(model([second])[0], results[0].output, exact=False)
    results = model.step_batch([second, second], batch)
    assert [result.executed for result in results] == [0, 1]


def test_a_policy_with_other_parameters_is_the_one_that_is_asked(folder, built, device):
    side = sides(folder, built, device, learns=False)[1]
    images = list(clip(device, 6))
    for image in images[:3]:
        side.frame(image)
    head = side.model.policy.network.head[-1]
    for bias, expected in ((50.0, 1.0), (-50.0, 0.0)):
        head.bias = nn.Parameter(torch.full_like(head.bias, bias))
        result, _ = side.frame(images[3])
        assert result.executed == expected and not result.is_first


# ---------------------------------------------------------------- features that are gone


def test_the_precision_may_change_between_frames():
    # Detectron2's detectors do not run in double precision.
    model, _ = build_pair("semantic")
    model.policy = NoBlocks()
    first, *later = frames(6)
    stream, batch = model.init_state(), model.init_state(2)
    model.step(first, stream)
    model.step_batch([first, first], batch)
    grid = BlockGrid.empty(block_size=64, image_size=(128, 192))
    model.double()
    result = model.step(later[0], stream, grid=grid)
    assert result.executed == 1 and result.is_first, "not what was asked for, and it says so"
    assert model.step(later[1], stream).executed == 0
    assert [x.executed for x in model.step_batch([later[1]] * 2, batch)] == [1, 1]
    model.float()
    assert model.step(later[2], stream).executed == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert model.step(later[3], stream).executed == 1
        assert model.step(later[3], stream).executed == 0
    assert model.step(later[4], stream).executed == 1, "older features of float32 are not a basis"
    with torch.autocast("cpu", torch.bfloat16):
        batch.features.reset()
        assert [x.executed for x in model.step_batch([later[1]] * 2, batch)] == [1, 1]


def test_other_sizes_leave_a_camera_alone(model, monkeypatch):
    for network in (model.backbone, model.proposal_generator.rpn_head):
        monkeypatch.setattr(network._programs, "_recent", deque(maxlen=1))
    camera, batch, (other,) = frames(2), model.init_state(2), frames(1, size=(64, 64))
    stream = model.init_state()
    model.step(camera[0], stream)
    model.step_batch([camera[0]] * 2, batch)
    model.step(other, model.init_state())
    assert model.step(camera[1], stream).executed == 0
    assert [x.executed for x in model.step_batch([camera[1]] * 2, batch)] == [0, 0]


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("backbone", KeyboardInterrupt),
        ("proposal_generator.rpn_head", MemoryError),
        ("task", KeyboardInterrupt),
        ("task", RuntimeError),
    ],
)
def test_a_frame_that_fails_makes_the_next_one_whole(ways, device, monkeypatch, error, where):
    def fail(*args, **kwargs):
        raise error

    images = list(clip(device, 3))
    for side in ways:
        for image in images[:2]:
            side.frame(image)
        with monkeypatch.context() as patch:
            if where == "task":
                patch.setattr(type(side.model.task), "observe", fail)
            else:
                owner = side.model.base.get_submodule(where)
                patch.setattr(type(owner), "forward", fail)
            for _ in range(2):
                # Captures replay their operators: in a graph the last one fails.
                with pytest.raises(error):
                    side.frame(images[2])
        grid = BlockGrid.empty(block_size=64, image_size=(128, 256), device=device)
        result = side.frame(images[2], grid)[0]
        assert result.is_first and result.executed == 1
        inputs = {"image": images[2], "height": 128, "width": 256}
        with torch.no_grad():
            assert_same_output(side.model([inputs])[0], result)
        assert side.frame(images[2])[0].executed == 0


def test_a_batch_goes_on_after_an_interrupt(model, monkeypatch):
    first, second = frames(2)
    batch = model.init_state(2)
    model.step_batch([first, first], batch)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(model.task), "observe", _interrupt)
        model.step_batch([second, second], batch)
    results = model.step_batch([second, second], batch)
    assert [result.executed for result in results] == [1, 1]
    assert [x.executed for x in model.step_batch([second, second], batch)] == [0, 0]


def _interrupt(*args, **kwargs):
    raise KeyboardInterrupt


# ---------------------------------------------------------------- networks that are not traced


def test_a_network_that_runs_densely_says_so(ways, device, monkeypatch):
    for side in ways:
        network = side.model.base.backbone
        expected = side.frame(next(iter(clip(device, 1))))[0].dense_macs
        monkeypatch.setattr(network, "_untraceable", True)
        side.stream = side.model.init_state()
        for image in clip(device, 4):
            result, _ = side.frame(image)
            assert result.executed == 1 and result.grid.is_full
            assert result.dense_macs == expected
        assert 0.5 * expected < result.macs <= expected, "all of the backbone, nothing of the RPN"
        monkeypatch.undo()


def test_a_failure_of_the_moment_is_made_good(ways, device, monkeypatch):
    original, calls = module.trace, []

    def fail(*args):
        calls.append(None)
        if len(calls) <= 2:
            raise module.TraceError("another thread traces")
        return original(*args)

    monkeypatch.setattr(module, "trace", fail)
    for side in ways:
        calls.clear()
        side.model.base.backbone._programs.clear()
        side.model.base.backbone._failures = 0
        shares = []
        for image in clip(device, 4):
            result = side.frame(image)[0]
            shares.append(result.executed)
        assert shares == [1, 1, 0, 0] and result.macs == 0
        side.model.base.backbone._failures = 0


# ---------------------------------------------------------------- inference mode


def test_inference_mode_around_a_model(pair, model):
    model.policy = copy.deepcopy(build_pair("mask-rcnn")[0].policy)
    images, runs = frames(7), []
    weights = copy.deepcopy(model.policy.state_dict())
    for mode in (lambda n: False, lambda n: True, lambda n: n % 2 == 0, lambda n: n % 2 == 1):
        model.policy.load_state_dict(weights)
        model.policy._uniform = type(model.policy._uniform)(0)
        learner = OnlineLearner(model.policy, target=0.5, update_every=2)
        stream, told = model.init_state(), []
        for n, inputs in enumerate(images):
            with torch.inference_mode(mode(n)):
                image = inputs["image"].clone()
                result = model.step(
                    {**inputs, "image": image}, stream, learning=learner.wants_graph()
                )
                metrics = learn(learner, model, [result])
            told.append((result, metrics))
        runs.append((told, copy.deepcopy(model.policy.state_dict())))
    for told, state in runs[1:]:
        for (first, first_told), (second, second_told) in zip(runs[0][0], told, strict=True):
            assert_same(first.output, second.output)
            assert torch.equal(first.grid.active, second.grid.active)
            assert first_told == second_told
        assert all(torch.equal(state[key], value) for key, value in runs[0][1].items())
    assert any(not torch.equal(weights[key], value) for key, value in runs[0][1].items())


def test_inference_mode_while_building_and_streaming(pair):
    pictures = [x["image"].permute(1, 2, 0).numpy() for x in frames(6)]
    runs = []
    for building, streaming in ((False, False), (True, False), (False, True), (True, True)):
        torch.manual_seed(1)
        with torch.inference_mode(building):
            model, _ = build_pair("mask-rcnn")
            model.learner = OnlineLearner(model.policy, target=0.5, update_every=2)
            predictor = VideoPredictor(model=model)
        assert not any(x.is_inference() for x in model.state_dict().values())
        with torch.inference_mode(streaming):
            runs.append([result for _, result in predictor.stream(pictures)])
        assert model.learner.frames == 5
    for results in runs[1:]:
        for first, second in zip(runs[0], results, strict=True):
            assert_same(first.output, second.output)
            assert torch.equal(first.grid.active, second.grid.active)


def test_policies_of_streams_that_are_copied_in_inference_mode(model):
    with torch.inference_mode():
        model.policy = build_pair("mask-rcnn")[0].policy
        model.learner = OnlineLearner(model.policy, target=0.5, update_every=1)
        predictor = VideoPredictor(model=model)
        batch = model.init_state(2, own_policies=True)
    pictures = [x["image"].permute(1, 2, 0).numpy() for x in frames(3)]
    for inference in (False, True):
        with torch.inference_mode(inference):
            ticks = list(predictor.streams([pictures, pictures], own_policies=True))
            assert len(ticks) == 3 and not ticks[2][0][1].is_first
    first, second = frames(2)
    model.step_batch([first, first], batch)
    results = model.step_batch([second, second], batch, learning=[True, False])
    assert [x.decision.logits.requires_grad for x in results] == [True, False]
    results[0].decision.logits.sum().backward()
    assert all(parameter.grad is not None for parameter in batch.policies[0].parameters())


@pytest.mark.usefixtures("replayed_lessons")
def test_inference_mode_around_graphs(folder, built, device):
    opts = ("MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY", 2)
    eager, graph = sides(folder, built, device, *opts)
    for index, image in enumerate(clip(device, 5)):
        expected, _ = eager.frame(image)
        with torch.inference_mode(index % 2 == 0):
            found, _ = graph.frame(image)
            assert torch.equal(found.grid.active, expected.grid.active)
            assert_same_output(expected, found)


def test_dense_pictures_in_inference_mode(model, pair):
    (inputs,) = frames(1)
    with torch.inference_mode():
        found = model([inputs])[0]
    with torch.no_grad():
        assert_same(pair[1]([inputs])[0], found)
