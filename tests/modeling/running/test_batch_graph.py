"""
A batch of streams as one graph has the results of its streams one by one, when streams join, leave,
cut or miss a frame. On a CPU the same functions are called instead of replayed.
"""

import copy

import pytest
import torch

from blockcopy_d2.modeling import InstanceTask, learn
from blockcopy_d2.modeling.running.history import tensors_of
from blockcopy_d2.sparse import BlockGrid, MissingFeatures
from tests.modeling.running.networks import NETWORKS
from tests.modeling.running.sides import (
    BLOCK,
    SIZE,
    Side,
    assert_same,
    assert_same_output,
    clip,
    panning_clip,
    sides,
    weights_of,
)

MOTION = ("MODEL.BLOCKCOPY.MOTION.NAME", "BlockMatching")
DIFFERENCE = ("MODEL.BLOCKCOPY.POLICY.NAME", "FrameDifference")
MOVED = (*MOTION, "MODEL.BLOCKCOPY.POLICY.NAME", "MovedDifference")
EXPECTED = (*MOTION, "MODEL.BLOCKCOPY.POLICY.NAME", "ExpectedGain")
EXPECTED = (*EXPECTED, "MODEL.BLOCKCOPY.POLICY.BURST", 2.0)
VECTORS = [(8, 0), (5, -3), (0, 0), (-6, 8), (2, 2), (-4, 0), (3, 3)]
WAITS = ("MODEL.BLOCKCOPY.LEARNER.DELAY", 1)
UPDATES = ("MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY", 2, "MODEL.BLOCKCOPY.LEARNER.LR", 0.01)


def as_input(image):
    return None if image is None else {"image": image, "height": SIZE[0], "width": SIZE[1]}


def tick(side, batch, images, learner=None, grid=None):
    """The results of a frame of every stream, each with what was learned and its block gain."""
    inputs = [as_input(image) for image in images]
    results = side.model.step_batch(inputs, batch, learner=learner, grid=grid)
    told = []
    for result in results:
        told.append(None if result is None else dict(result.learned))
        if result is not None and not result.is_first:
            told[-1]["block gain"] = side.model.information_gain(result)
    return list(zip(results, told))


def assert_same_result(expected, found, where):
    """Compares a frame in a graph of its own with one in a batch; costs are those of the batch."""
    assert hasattr(expected, "_graph") and hasattr(found, "_graph"), where
    for name in ("is_first", "was_drawn", "policy_macs"):
        assert getattr(found, name) == getattr(expected, name), (where, name)
    for name in ("cut", "broken", "age"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), (where, name)
    assert torch.equal(found.grid.active, expected.grid.active), where
    if expected.field is not None:
        assert torch.equal(found.field, expected.field), where
    elif found.field is not None:
        assert found.is_first and not found.field.any(), where
    torch.testing.assert_close(found.frame, expected.frame, atol=1e-4, rtol=1e-5)
    assert (found.gain is None) == (expected.gain is None), where
    if found.gain is not None:
        torch.testing.assert_close(found.gain, expected.gain, atol=2e-3, rtol=1e-3)
    assert (found.observation is None) == (expected.observation is None), where
    if found.observation is not None:
        torch.testing.assert_close(
            found.observation.frame_state, expected.observation.frame_state, atol=1e-3, rtol=1e-3
        )
    assert_same_output(expected, found)


def rows_of(batch, slot):
    """Copies a stream's memory: history and feature maps."""
    history = [x[slot] for x in tensors_of(batch.history)]
    maps = [
        caches.maps[index].pixels[slot]
        for caches in batch.features.all_caches()
        for index in sorted(caches.maps)
    ]
    return [x.clone() for x in [*history, *maps]]


@pytest.mark.parametrize(
    "opts",
    [
        # what is moved and stays is a part of the second
        pytest.param(DIFFERENCE, id="in-place", marks=pytest.mark.slow),
        pytest.param(MOVED, id="moved"),
        pytest.param(EXPECTED, id="expected-gain"),
    ],
)
def test_streams_join_leave_cut_and_miss_frames(folder, built, device, opts):
    options = ("MODEL.BLOCKCOPY.SCENE_CUT", 0.2, "MODEL.BLOCKCOPY.REFRESH_EVERY", 4)
    side = Side(folder, built, device, *opts, *options, graph=True, learns=False)
    videos = [list(panning_clip(device, VECTORS, seed=seed)) for seed in range(4)]
    scene = panning_clip(device, VECTORS, seed=9)
    cut = [(image.float() + 90).clamp(max=255).to(torch.uint8) for image in scene]
    # A stream with a cut, one that misses frames, one that joins late and leaves, and a video after
    # it.
    script = [
        [videos[0][0], videos[1][0], None],
        [videos[0][1], videos[1][1], None],
        [videos[0][2], None, videos[2][0]],
        [cut[3], videos[1][2], videos[2][1]],
        [cut[4], None, videos[2][2]],
        [cut[5], None, videos[3][0]],
        [None, videos[1][3], videos[3][1]],
        [cut[6], videos[1][4], videos[3][2]],
    ]
    batch, alone = side.model.init_state(3), [side.model.init_state() for _ in range(3)]
    captures, cuts = set(), 0
    for number, images in enumerate(script):
        if number == 5:
            batch.reset(2)
            alone[2].reset()
        idle = [n for n, image in enumerate(images) if image is None]
        before = {n: rows_of(batch, n) for n in idle} if number else {}
        results = [result for result, _ in tick(side, batch, images)]
        for n, image in enumerate(images):
            if image is None:
                assert results[n] is None
                for one, other in zip(before.get(n, []), rows_of(batch, n)):
                    assert torch.equal(one.nan_to_num(), other.nan_to_num()), (number, n)
                continue
            expected = side.model.step(as_input(image), alone[n])
            assert_same_result(expected, results[n], f"tick {number}, stream {n}")
            cuts += bool(results[n].cut)
            assert results[n].work.macs <= results[n].work.dense_macs
        captures |= set(map(id, batch.graph._captures.values()))
    assert cuts == 1, "a video after another one is not a cut"
    assert batch.counts == [7, 5, 3] and batch.frame_index.tolist() == batch.counts
    assert len(captures) == 2, "the first frame, and all others"


@pytest.mark.usefixtures("replayed_lessons")
@pytest.mark.parametrize(
    "own, opts",
    [
        pytest.param(False, MOTION, id="one-policy-paper"),
        pytest.param(True, (*EXPECTED, *WAITS), id="one-each-expected-gain-later"),
        pytest.param(True, MOTION, id="one-each-paper", marks=pytest.mark.slow),
        pytest.param(False, EXPECTED, id="one-policy-expected-gain", marks=pytest.mark.slow),
    ],
)
def test_a_batch_learns_as_operator_by_operator(folder, built, device, own, opts):
    eager, graph = sides(folder, built, device, *opts, *UPDATES)
    videos = [list(panning_clip(device, VECTORS, seed=seed)) for seed in range(3)]
    batches, learners = [], []
    for side in (eager, graph):
        torch.manual_seed(0)
        batch = side.model.init_state(3, own_policies=own)
        batches.append(batch)
        learners.append(side.learner)
        if own:
            learners[-1] = [policy.learner_class(side.cfg, policy) for policy in batch.policies]
    for number in range(len(VECTORS)):
        images = [video[number] for video in videos]
        if number in (2, 5):
            images[1] = None
        if number == 4:
            for batch in batches:
                batch.reset(0)
        both = (tick(*x) for x in zip((eager, graph), batches, [images] * 2, learners))
        for n, (expected, found) in enumerate(zip(*both, strict=True)):
            assert (expected[0] is None) == (found[0] is None) == (images[n] is None)
            if expected[0] is not None:
                assert_same(expected, found, f"tick {number}, stream {n}")
        equalize(*(x if own else [x] for x in learners))
    counted = [x.frames for x in (learners[1] if own else [learners[1]])]
    assert counted == ([5, 4, 6] if own else [6])


def equalize(learners, others):
    """RMSprop's steps have the size of the learning rate however small their gradient is."""
    for learner, other in zip(learners, others, strict=True):
        assert other.frames == learner.frames
        states = (x.optimizer.state for x in (learner, other))
        for (weight, state), (own, own_state) in zip(*(x.items() for x in states), strict=True):
            assert (own.detach() - weight.detach()).abs().mean() < 0.02
            own.data.copy_(weight.data)
            own_state["square_avg"].copy_(state["square_avg"])


@pytest.mark.usefixtures("replayed_lessons")
def test_idle_slots_and_first_frames_teach_nothing(folder, built, device):
    """A batch with idle slots teaches the same as its only stream alone."""
    opts = ("MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY", 1, "MODEL.BLOCKCOPY.LEARNER.LR", 0.01)
    one = Side(folder, {}, device, *opts, graph=True)
    many = Side(folder, {}, device, *opts, graph=True)
    for side in (one, many):
        # Which blocks run must not depend on how many are drawn.
        torch.manual_seed(0)
        with torch.no_grad():
            side.model.policy.network.head[-1].bias.fill_(40.0)
    batch, alone = many.model.init_state(3), one.model.init_state()
    frames = list(clip(device, 5))
    for number, image in enumerate(frames):
        other = frames[0] if number == 3 else None
        ((found, told), *_) = tick(many, batch, [image, None, other], many.learner)
        expected = one.model.step(as_input(image), alone, learner=one.learner)
        assert set(told) - {"block gain"} == set(expected.learned)
        for name, value in expected.learned.items():
            torch.testing.assert_close(told[name], value, atol=1e-3, rtol=1e-3)
    assert many.learner.frames == one.learner.frames == 4
    torch.testing.assert_close(weights_of(many), weights_of(one), atol=1e-3, rtol=1e-2)


def test_grids_of_the_caller(folder, built, device):
    eager, graph = sides(folder, built, device, learns=False)
    generator = torch.Generator().manual_seed(0)
    batches = [side.model.init_state(2) for side in (eager, graph)]
    videos = [list(clip(device, 5, seed=seed)) for seed in range(2)]
    layout = {"block_size": BLOCK, "image_size": SIZE}
    for number, images in enumerate(zip(*videos)):
        grid = None
        if number in (1, 2, 4):
            active = torch.rand(2, 2, 4, generator=generator) < 0.5
            grid = BlockGrid(active.to(device), **layout)
        images = [images[0], None if number == 2 else images[1]]
        both = (
            tick(side, batch, images, grid=grid) for side, batch in zip((eager, graph), batches)
        )
        for expected, found in zip(*both, strict=True):
            if expected[0] is not None:
                assert_same(expected, found, f"tick {number}")
    for side, batch in zip((eager, graph), batches):
        batch.reset(1)
        with pytest.raises(MissingFeatures, match="must run all blocks.* stream 1 of 2 does not"):
            tick(side, batch, images, grid=grid)
        # Nothing has happened to the other stream.
        assert batch.counts == [5, 0]
        grid.active[1] = True
        (first, _), (second, _) = tick(side, batch, images, grid=grid)
        assert second.is_first and not first.is_first and not first.grid.is_full
        grid.active[1] = False


@pytest.mark.parametrize(
    "name",
    [
        "swiftnet-18",
        "csp",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("retinanet", "panoptic")),
    ],
)
def test_networks(folder, built, device, name):
    side = Side(folder, built, device, *MOVED, graph=True, network=NETWORKS[name])
    videos = [list(panning_clip(device, VECTORS[:3], seed=seed)) for seed in range(2)]
    batch, alone = side.model.init_state(2), [side.model.init_state() for _ in range(2)]
    for number, images in enumerate(zip(*videos)):
        images = [images[0], None if number == 1 else images[1]]
        for n, (result, told) in enumerate(tick(side, batch, images)):
            if result is None:
                continue
            expected = side.model.step(as_input(images[n]), alone[n])
            assert_same_result(expected, result, f"tick {number}, stream {n}")
            if not result.is_first:
                gain = side.model.information_gain(expected)
                torch.testing.assert_close(told["block gain"], gain, atol=1e-3, rtol=1e-3)


def test_a_task_for_one_stream_at_a_time(folder, built, device):
    class Doubled(InstanceTask):
        def block_gain(self, current, previous, grid_shape):
            assert current.masks.dim() == 3
            return 2 * super().block_gain(current, previous, grid_shape)

        def observe(self, output, **geometry):
            return super().observe(output, **geometry)

        def paint(self, seen):
            return super().paint(seen) / 2

        def move(self, seen, motion):
            return super().move(seen, motion)

    side = Side(folder, built, device, *MOTION, graph=True)
    plain = side.model.task
    videos = [list(panning_clip(device, VECTORS[:3], seed=seed)) for seed in range(2)]
    runs = []
    for task in (plain, Doubled(plain.num_classes, plain.pixels_per_block)):
        side.model.task, batch = task, side.model.init_state(2)
        side.model.policy._uniform._generator = None
        grid = BlockGrid.full(block_size=BLOCK, image_size=SIZE, batch=2, device=device)
        try:
            for images in zip(*videos):
                results = side.model.step_batch([as_input(x) for x in images], batch, grid=grid)
        finally:
            side.model.task = plain
        runs.append((batch.painted.clone(), [x.detections for x in results]))
    (painted, seen), (halved, others) = runs
    torch.testing.assert_close(halved, painted / 2)
    for one, other in zip(seen, others):
        assert torch.equal(one.masks, other.masks)


# ---------------------------------------------------------------- who is in a graph


def test_outputs_of_several_sizes_go_on_operator_by_operator(folder, built, device):
    side = Side(folder, built, device, *DIFFERENCE, graph=True, learns=False)
    batch, alone = side.model.init_state(2), [side.model.init_state() for _ in range(2)]
    for number, image in enumerate(clip(device, 4)):
        inputs = [as_input(image), as_input(255 - image)]
        if number >= 2:
            inputs[1] = {"image": 255 - image, "height": 64, "width": 128}
        results = side.model.step_batch(inputs, batch)
        assert (batch.graph is None) == (number >= 2)
        for n, result in enumerate(results):
            expected = side.model.step(inputs[n], alone[n])
            assert torch.equal(result.grid.active, expected.grid.active)
            assert_same_output(expected, result)
    assert results[1]["instances"].image_size == (64, 128)


def test_a_switch_to_eager_frames_goes_on(folder, built, device):
    eager, graph = sides(folder, built, device, *DIFFERENCE, learns=False)
    batches = [side.model.init_state(3) for side in (eager, graph)]
    try:
        for number, image in enumerate(clip(device, 5)):
            images = [image, 255 - image if number != 1 else None, image if number > 3 else None]
            both = (tick(*x, images) for x in zip((eager, graph), batches))
            for (expected, _), (found, _) in zip(*both, strict=True):
                if expected is not None:
                    assert torch.equal(found.grid.active, expected.grid.active)
                    assert found.is_first == expected.is_first
                    assert_same_output(expected, found)
            graph.model.cuda_graph = number < 2
    finally:
        graph.model.cuda_graph = True
    assert batches[1].graph is None and batches[1].counts == [5, 4, 1]


def test_a_reset_of_all_keeps_the_graph(folder, built, device):
    side = Side(folder, built, device, *DIFFERENCE, graph=True, learns=False)
    batch = side.model.init_state(2)
    frames = list(clip(device, 4))
    for image in frames:
        tick(side, batch, [image, 255 - image])
    graph = batch.graph
    batch.reset()
    ((first, _), _) = tick(side, batch, [frames[0], None])
    results = [result for result, _ in tick(side, batch, [frames[1], frames[2]])]
    assert batch.graph is graph and first.is_first
    assert [result.is_first for result in results] == [False, True]
    assert results[1].grid.is_full and not results[0].grid.is_full


def test_learning_from_some_streams_of_a_batch(folder, built, device):
    """Users may call learn() themselves."""
    eager, graph = sides(folder, built, device, "MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY", 1)
    told = []
    for side in (eager, graph):
        batch = side.model.init_state(2)
        for image in clip(device, 3):
            inputs = [as_input(image), as_input(255 - image)]
            results = side.model.step_batch(inputs, batch, learning=True)
            told.append(learn(side.learner, side.model, results[1:]))
    assert told[0] == told[3] == {}
    for expected, found in zip(told[1:3], told[4:6], strict=True):
        for name, value in expected.items():
            close = {"atol": 0.2, "rtol": 0.02, "check_dtype": False}
            torch.testing.assert_close(found[name], value, **close)


def test_options_change_in_the_middle(folder, built, device):
    """On a GPU frames are then captured in the middle of videos."""
    eager, graph = sides(folder, built, device, *MOVED)
    batches = [side.model.init_state(2) for side in (eager, graph)]
    videos = [list(panning_clip(device, VECTORS, seed=seed)) for seed in range(2)]
    for number, images in enumerate(zip(*videos)):
        images = [images[0], None if number == 3 else images[1]]
        both = (tick(*x, images) for x in zip((eager, graph), batches))
        for expected, found in zip(*both, strict=True):
            if expected[0] is not None:
                assert_same(expected, found, f"tick {number}")
        for side in (eager, graph):
            side.model.refresh_every = 3 if number == 2 else 0
            side.model.policy.target = 0.25 if number == 4 else 0.5


def test_streams_know_their_own(folder, built, device):
    side = Side(folder, built, device, *MOTION, graph=True)
    batch = side.model.init_state(2)
    for image in clip(device, 3):
        results = side.model.step_batch([as_input(image), as_input(255 - image)], batch)
    first, second = results
    assert not torch.equal(first.frame, second.frame)
    assert first.observation.frame.shape[0] == second.observation.frame.shape[0] == 1
    assert torch.equal(second.observation.frame, second.frame)
    assert torch.equal(batch.outputs[1].masks, second.detections.masks)
    assert first.detections.masks.dim() == 3
    again = copy.copy(second)
    with pytest.raises(RuntimeError, match="holds a later frame"):
        side.model.step_batch([as_input(image), None], batch)
        again.frame  # noqa: B018


@pytest.mark.parametrize(
    "name", ["mask-rcnn", pytest.param("deeplab-global", marks=pytest.mark.slow)]
)
def test_a_video_goes_on_in_another_batch(folder, built, device, name):
    options = {"graph": True, "learns": False, "network": NETWORKS.get(name)}
    side = Side(folder, built, device, *MOVED, **options)
    videos = [list(panning_clip(device, VECTORS, seed=seed)) for seed in range(2)]
    small, large = side.model.init_state(2), side.model.init_state(4)
    alone = [side.model.init_state() for _ in videos]
    expected = [[side.model.step(as_input(x), s) for x in v] for v, s in zip(videos, alone)]
    for number in range(3):
        tick(side, small, [video[number] for video in videos])
    tick(side, large, [videos[0][0]] * 4)
    large.take_over(3, small, 1)
    assert large.counts == [1, 1, 1, 3] and large.frame_index.tolist() == large.counts
    for one, other in zip(rows_of(large, 3), rows_of(small, 1), strict=True):
        assert torch.equal(one.nan_to_num(), other.nan_to_num())
    for number in range(3, 6):
        *_, (found, _) = tick(side, large, [None, videos[0][number], None, videos[1][number]])
        assert torch.equal(found.grid.active, expected[1][number].grid.active)
        assert torch.equal(found.age, expected[1][number].age)
        assert_same_output(expected[1][number], found)
    # Nothing is taken over from other weights.
    small.weights_version = -1
    large.take_over(0, small, 0)
    assert large.counts[0] == 0 and large.frame_index[0] == 0
