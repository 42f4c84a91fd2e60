"""
Frames as graphs have the results of frames run operator by operator, and teach the policy the same.
On a CPU the same functions are called instead of replayed.
"""

import copy
import gc
import weakref

import pytest
import torch

from blockcopy_d2.kernels.graph import CapturedFunction
from blockcopy_d2.modeling import FrameGraph, InstanceTask, StreamPool, VideoStream
from blockcopy_d2.modeling.running.captured_learning import CapturedLearning
from blockcopy_d2.policy import FrameDifference, NoBlocks
from blockcopy_d2.sparse import BlockGrid
from tests.modeling.running.sides import (
    BLOCK,
    SIZE,
    Side,
    assert_same_output,
    both,
    clip,
    optimizer_state,
    sides,
    weights_of,
)


@pytest.mark.usefixtures("replayed_lessons")
def test_a_clip(folder, built, device):
    opts = ("MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY", 2, "MODEL.BLOCKCOPY.LEARNER.LR", 0.01)
    eager, graph = sides(folder, built, device, *opts)
    before = copy.deepcopy(graph.model.policy.state_dict())
    grids = []
    for image in clip(device, 9):
        results = both(eager, graph, image)
        grids.append(results[1][0].grid)
    assert len(grids[0].active) and any(not grid.is_full for grid in grids[1:])
    assert graph.learner.frames == eager.learner.frames == 8
    assert graph.stream.frames == eager.stream.frames == 9
    for name in ("frame", "frame_state", "painted", "active", "age", "broken", "frame_index"):
        expected, found = (getattr(side.stream, name) for side in (eager, graph))
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    for name, value in graph.model.policy.state_dict().items():
        assert not torch.equal(value, before[name]), name


@pytest.mark.usefixtures("replayed_lessons")
def test_updates_that_wait_are_computed_from_their_frame(folder, built, device):
    opts = ("MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY", 2, "MODEL.BLOCKCOPY.LEARNER.DELAY", 1)
    eager, graph = sides(folder, built, device, *opts, "MODEL.BLOCKCOPY.LEARNER.LR", 0.01)
    changes, before = [], weights_of(graph)
    for image in clip(device, 9):
        both(eager, graph, image)
        changes.append(not torch.equal(weights_of(graph), before))
        before = weights_of(graph)
    # Nothing is learned from the first frame; updates follow the second and fourth after it.
    assert changes == [False, False, False, True, False, True, False, True, False]


@pytest.mark.usefixtures("replayed_lessons")
def test_gains_are_those_between_one_frame_and_the_next(folder, built, device):
    eager, graph = sides(folder, built, device, "MODEL.BLOCKCOPY.POLICY.NAME", "ExpectedGain")
    gains = [both(eager, graph, image)[1][0].gain.clone() for image in clip(device, 6)]
    assert not torch.equal(gains[-1], gains[-2])


class _AsLateAsCanBe:
    """Stands for a CUDA event: computes an update when its result is waited for."""

    def __init__(self, lesson):
        self.lesson = lesson

    def wait(self):
        self.lesson._call("update", self.lesson._update, self.lesson._pool)


@pytest.mark.usefixtures("replayed_lessons")
def test_it_does_not_matter_when_updates_are_computed(folder, built, device, monkeypatch):
    opts = ("MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY", 2, "MODEL.BLOCKCOPY.LEARNER.DELAY", 1)
    opts += ("MODEL.BLOCKCOPY.LEARNER.LR", 0.01)
    update, weights, executed = CapturedLearning._update, [], []

    def slowly(lesson):
        torch.cuda._sleep(20_000_000)
        update(lesson)

    def beside(lesson):
        lesson._learner.updates.computed_beside(_AsLateAsCanBe(lesson))

    for late in (False, True):
        if late and device == "cuda":
            monkeypatch.setattr(CapturedLearning, "_update", slowly)
        elif late:
            monkeypatch.setattr(CapturedLearning, "_update_beside", beside)
        side = Side(folder, built, device, *opts, graph=True)
        results = [side.frame(image)[0] for image in clip(device, 9)]
        executed.append([result.executed for result in results])
        weights.append(weights_of(side))
    assert executed[0] == executed[1]
    if device == "cpu":
        torch.testing.assert_close(*weights, atol=0, rtol=0)
    # A GPU adds gradients in any order, and RMSprop makes a step of any: of the few that are
    # nearly zero, another one. If weights were taken over too early or too late, nearly all would
    # differ.
    assert ((weights[0] - weights[1]).abs() > 1e-4).float().mean() < 1e-4


def test_cuts_refreshes_new_videos_and_sizes(folder, built, device):
    opts = ("MODEL.BLOCKCOPY.REFRESH_EVERY", 3, "MODEL.BLOCKCOPY.SCENE_CUT", 0.05)
    eager, graph = sides(folder, built, device, *opts)
    first, second = list(clip(device, 5)), [255 - image for image in clip(device, 4, seed=1)]
    cuts = []
    for image in [*first, *second]:
        results = both(eager, graph, image)
        cuts.append(bool(results[1][0].cut))
    assert any(cuts)
    for side in (eager, graph):
        side.stream.reset()
        side.model.scene_cut = 0.0
    for image in [*second, *clip(device, 3, size=(128, 192)), *clip(device, 2, size=(100, 192))]:
        results = both(eager, graph, image)
    # The last ones are padded to the earlier size, and start anew all the same.
    assert graph.stream.frames == eager.stream.frames == 2
    assert not results[1][0].is_first


@pytest.mark.parametrize("policy", ["NoBlocks", "AllBlocks", "EveryKthFrame", "RandomBlocks"])
def test_policies_that_do_not_learn(folder, built, device, policy):
    eager, graph = sides(folder, built, device, "MODEL.BLOCKCOPY.POLICY.NAME", policy)
    for image in clip(device, 4):
        results = both(eager, graph, image)
    if policy == "NoBlocks":
        assert graph.frame(image)[0].grid.is_empty
        assert_same_output(results[1][0], graph.frame(image)[0])


@pytest.mark.usefixtures("replayed_lessons")
def test_single_pixels_and_counted_first_frames(folder, built, device):
    """Two keys of the authors' code: the policy sees single pixels, M counts first frames."""
    keys = ("POLICY.RESIZE", "nearest", "LEARNER.COUNT_FIRST_FRAMES", True)
    opts = [f"MODEL.BLOCKCOPY.{key}" if index % 2 == 0 else key for index, key in enumerate(keys)]
    eager, graph = sides(folder, built, device, *opts)
    for image in clip(device, 2):
        _, (result, _) = both(eager, graph, image)
    step = BLOCK // graph.model.task.pixels_per_block
    mean, std = graph.model.base.pixel_mean, graph.model.base.pixel_std
    pixels = ((image - mean) / std)[None, :, ::step, ::step]
    torch.testing.assert_close(result.frame, pixels, atol=1e-3, rtol=1e-3)
    before = 0.9 + 0.1 * result.grid.fraction
    for side in (eager, graph):
        assert side.learner.state_dict()["moving_cost"].item() == pytest.approx(before)
        side.stream.reset()
    both(eager, graph, image)
    for side in (eager, graph):
        found = side.learner.state_dict()["moving_cost"].item()
        assert found == pytest.approx(0.9 * before + 0.1)


@pytest.mark.usefixtures("replayed_lessons")
@pytest.mark.parametrize("inputs", [["frame"], ["frame", "previous_frame", "grid"]])
def test_other_inputs_of_the_policy(folder, built, device, inputs):
    opts = ("MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY", 2, "MODEL.BLOCKCOPY.POLICY.INPUTS", inputs)
    eager, graph = sides(folder, built, device, *opts)
    for image in clip(device, 6):
        both(eager, graph, image)
    assert graph.stream.graph is not None and eager.stream.graph is None
    assert graph.learner.frames == eager.learner.frames == 5


def test_learning_may_be_off(folder, built, device):
    eager, graph = sides(folder, built, device, learns=False)
    for image in clip(device, 4):
        both(eager, graph, image)


@pytest.mark.usefixtures("replayed_lessons")
def test_targets_and_settings_change_from_one_frame_to_the_next(folder, built, device):
    eager, graph = sides(folder, built, device)
    for index, image in enumerate(clip(device, 8)):
        results = both(eager, graph, image)
        for side in (eager, graph):
            if index < 5:
                side.learner.target = 0.1 * index
            if index == 3:
                side.model.refresh_every = 2
            if index == 5:
                side.model.policy = NoBlocks()
                side.learner = None
    eager, graph = sides(folder, built, device, "MODEL.BLOCKCOPY.POLICY.NAME", "FrameDifference")
    shares = []
    for index, image in enumerate(clip(device, 5)):
        results = both(eager, graph, image)
        shares.append(results[1][0].executed)
        for side in (eager, graph):
            side.model.policy.target = (0.5, 1.0, 0.0, 0.25)[index % 4]
    assert shares == [1.0, 0.5, 1.0, 0.0, 0.25]


@pytest.mark.usefixtures("replayed_lessons")
def test_dense_frames_above_a_share(folder, built, device):
    opts = ("MODEL.BLOCKCOPY.DENSE_ABOVE", 0.4, "MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY", 2)
    eager, graph = sides(folder, built, device, *opts)
    decided, executed = [], []
    for image in clip(device, 16):
        results = both(eager, graph, image)
        decided.append(results[1][0].decision.active.float().mean().item())
        executed.append(results[1][0].executed)
    assert executed == [1.0 if share > 0.4 else share for share in decided]
    assert any(share < 1 for share in executed)
    assert any(share < 1 for share, all_of_them in zip(decided, executed) if all_of_them == 1)


def test_grids_of_the_caller(folder, built, device):
    eager, graph = sides(folder, built, device, learns=False)
    generator = torch.Generator().manual_seed(0)
    for index, image in enumerate(clip(device, 6)):
        grid = None
        if index % 3:
            active = torch.rand(1, 2, 4, generator=generator) < 0.5
            grid = BlockGrid(active.to(device), block_size=BLOCK, image_size=SIZE)
        both(eager, graph, image, grid)
    graph.stream.reset()
    with pytest.raises(RuntimeError, match="first frame of a stream must run all blocks"):
        graph.frame(image, grid)
    # It starts anew after the error.
    assert graph.frame(image)[0].grid.is_full


@pytest.mark.usefixtures("replayed_lessons")
def test_frames_that_are_not_finite(folder, built, device):
    eager, graph = sides(folder, built, device, "MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY", 1)
    images = [image.float() for image in clip(device, 5)]
    images[2] = images[2] * torch.nan
    for image in images:
        results = both(eager, graph, image)
    assert results[1][1]["skipped_updates"] == 2


def test_a_decision_to_learn_from_is_in_an_autograd_graph(folder, built, device):
    eager, graph = sides(folder, built, device)
    eager.learner = graph.learner = None
    for image in clip(device, 2):
        inputs = {"image": image}
        expected, found = (
            side.model.step(inputs, side.stream, learning=True).decision for side in (eager, graph)
        )
    assert found.logits.requires_grad and torch.equal(found.active, expected.active)
    close = {"atol": 1e-2, "rtol": 1e-2}
    torch.testing.assert_close(found.logits.detach(), expected.logits.detach(), **close)
    gradients = [
        torch.autograd.grad(decision.logits.sum(), list(side.model.policy.parameters()))
        for side, decision in ((eager, expected), (graph, found))
    ]
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other, atol=0.1, rtol=0.1)


@pytest.mark.usefixtures("replayed_lessons")
def test_decisions_that_are_kept_are_no_part_of_a_lesson(folder, built, device):
    eager, graph = sides(folder, built, device, "MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY", 1)
    kept = []
    for image in clip(device, 6):
        for result, _ in both(eager, graph, image):
            # Each keeps the gradient accumulators of the weights alive, on the CUDA stream where
            # they were made.
            kept.append(result.decision.logits)
    assert sum(logits is not None and logits.requires_grad for logits in kept) == 10


@pytest.mark.usefixtures("replayed_lessons")
def test_a_loaded_learner_is_the_one_that_learns(folder, built, device):
    opts = ("MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY", 1, "MODEL.BLOCKCOPY.LEARNER.LR", 0.01)
    eager, graph = sides(folder, built, device, *opts)
    early = None
    for index, image in enumerate(clip(device, 9)):
        if index == 3:
            early = [copy.deepcopy(side.learner.state_dict()) for side in (eager, graph)]
        if index == 5:
            for side, state in zip((eager, graph), early):
                side.learner.load_state_dict(state)
        if index == 7:
            for side in (eager, graph):
                side.learner.load_state_dict(side.learner.state_dict())
        (_, told), _ = both(eager, graph, image)
    assert graph.learner.frames == eager.learner.frames == 6
    assert optimizer_state(graph, "step").unique().tolist() == [6]
    assert 0 < told["moving_cost"] < 1


@pytest.mark.usefixtures("replayed_lessons")
def test_a_change_of_the_learning_rate_holds_from_the_next_frame_on(folder, built, device):
    eager, graph = sides(folder, built, device, "MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY", 1)
    for index, image in enumerate(clip(device, 7)):
        if index == 5:
            before = weights_of(graph)
            for side in (eager, graph):
                side.learner.optimizer.param_groups[0]["lr"] = 0.0
        both(eager, graph, image)
    assert torch.equal(weights_of(graph), before)


# ---------------------------------------------------------------- streams and memory


def test_streams_interleaved_are_as_one_after_the_other(folder, built, device):
    opts = ("MODEL.BLOCKCOPY.POLICY.NAME", "FrameDifference")
    _, graph = sides(folder, built, device, *opts)
    clips = {name: list(clip(device, 5, seed=seed)) for seed, name in enumerate("ab")}

    def run(order):
        streams = {name: VideoStream() for name in clips}
        results = {name: [] for name in clips}
        for name, index in order:
            result, _ = graph.frame(clips[name][index], stream=streams[name])
            results[name].append((result, result["instances"]))
        return results

    after = run([(name, index) for name in clips for index in range(5)])
    mixed = run([(name, index) for index in range(5) for name in clips])
    for name in clips:
        for (first, instances), (second, others) in zip(after[name], mixed[name], strict=True):
            assert torch.equal(first.grid.active, second.grid.active)
            assert torch.equal(instances.scores, others.scores)
            assert torch.equal(instances.pred_boxes.tensor, others.pred_boxes.tensor)
            assert torch.equal(instances.pred_masks, others.pred_masks)


def test_the_stages_of_a_graph_are_timed_by_its_clock(folder, built, device):
    if device == "cuda":
        pytest.skip("has a clock of its own")
    eager, graph = sides(folder, built, device)
    *images, image = clip(device, 3)
    for other in images:
        both(eager, graph, other)

    class Clock:
        def __init__(self, number):
            self.times, self.next = torch.zeros(number, dtype=torch.int64), 0

        def mark(self, index):
            assert index == self.next
            self.times[index], self.next = 10_000_000_000 * index**2, index + 1

    capture = graph.stream.graph._latest
    for part in ("infer", "observe"):
        capture._clocks[part] = Clock(len(capture._clocks[part].times))
        capture._functions[part] = CapturedFunction()
    _, (result, _) = both(eager, graph, image)
    seconds = result.seconds
    # Memory of inputs and outputs counts, too.
    expected = {"preprocess": 10, "policy": 30, "network": 50, "heads": 70, "observe": 10}
    assert {name: seconds[name] for name in expected} == pytest.approx(expected, abs=5)


def test_a_result_outlives_its_frame(folder, built, device):
    _, graph = sides(folder, built, device)
    images = list(clip(device, 4))
    early = [graph.frame(image)[0] for image in images]
    graph.stream = graph.model.init_state()
    graph.model.policy._uniform._generator = None
    for result, image in zip(early, images, strict=True):
        again, _ = graph.frame(image, result.grid if not result.is_first else None)
        assert_same_output(again, result)
        assert torch.equal(again.age, result.age)
    for name in ("frame", "observation", "detections"):
        with pytest.raises(RuntimeError, match="holds a later frame, or is gone with its stream"):
            getattr(early[1], name)


def test_memory_goes_with_the_stream(folder, built, device):
    _, graph = sides(folder, built, device)
    results = [graph.frame(image)[0] for image in clip(device, 3)]
    watched = weakref.ref(graph.stream.graph), weakref.ref(graph.stream.features)
    gc.disable()
    try:
        graph.stream = None
        assert [reference() for reference in watched] == [None, None]
    finally:
        gc.enable()
    assert len(results[-1]["instances"]) and results[-1].macs <= results[-1].dense_macs


def test_a_reset_keeps_the_graph_and_a_new_size_does_not(folder, built, device):
    _, graph = sides(folder, built, device)
    for image in clip(device, 3):
        graph.frame(image)
    first, memory = graph.stream.graph, graph.stream.graph.memory
    graph.stream.reset()
    assert graph.frame(image)[0].is_first
    assert graph.stream.graph is first and first.memory is memory
    (other,) = clip(device, 1, size=(128, 192))
    assert graph.frame(other)[0].is_first
    assert graph.stream.graph is not first


def test_a_pool_hands_memory_on(folder, built, device):
    _, graph = sides(folder, built, device)
    (image,) = clip(device, 1)
    pool = StreamPool(max_streams=2)
    first, second = (pool.get(name, 0) for name in "ab")
    for stream in (first, second):
        graph.frame(image, stream=stream)
    memory = first.graph.memory
    third = pool.get("c", 0)
    assert third is first and graph.frame(image, stream=third)[0].is_first
    assert third.graph.memory is memory and second.frames == 1


def test_other_weights_start_the_stream_anew(folder, built, device):
    _, graph = sides(folder, built, device, "MODEL.BLOCKCOPY.POLICY.NAME", "NoBlocks")
    image, *_ = clip(device, 1)
    before = [graph.frame(image)[0] for _ in range(2)][-1]
    weights = copy.deepcopy(graph.model.state_dict())
    try:
        changed = {k: v * 1.1 if "box_predictor" in k else v for k, v in weights.items()}
        graph.model.load_state_dict(changed)
        after, _ = graph.frame(image)
        inputs = {"image": image, "height": SIZE[0], "width": SIZE[1]}
        (expected,) = graph.model([inputs])
    finally:
        graph.model.load_state_dict(weights)
    assert after.is_first and not torch.equal(after["instances"].scores, before["instances"].scores)
    assert_same_output(expected, after)


def test_a_replay_notices_other_weights_while_it_runs(folder, built, device):
    """The policy then has not drawn for the frame, nor learned from it, and the frame is whole."""
    eager, graph = sides(folder, built, device)
    *images, image, last = clip(device, 5)
    for other in images:
        both(eager, graph, other)
    capture = graph.stream.graph._latest
    if device == "cpu":
        capture._functions = {part: CapturedFunction() for part in ("infer", "finish", "observe")}
    ran, run = [], type(capture).run

    def watched(self, part, *args):
        ran.append((self is capture, part))
        if self is capture and device == "cpu":
            # A replay draws, and knows nothing of weights.
            graph.model.policy._uniform.draw((2, 4), torch.device(device))
            return
        run(self, part, *args)

    weights = copy.deepcopy(graph.model.state_dict())
    try:
        for side in (eager, graph):
            side.model.load_state_dict(
                {k: v * 1.1 if "box_predictor" in k else v for k, v in weights.items()}
            )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(capture), "run", watched)
            _, (result, _) = both(eager, graph, image)
        assert result.is_first and result.executed == 1
        assert ran == [(True, "infer")] + [(False, x) for x in ("infer", "finish", "observe")]
        # Both draw the same random numbers.
        both(eager, graph, last)
    finally:
        for side in (eager, graph):
            side.model.load_state_dict(weights)


# ---------------------------------------------------------------- which frames are graphs


def test_what_is_recorded(folder, built, device, monkeypatch):
    eager, graph = sides(folder, built, device)
    model = graph.model

    def is_recorded(stream, model=model):
        return FrameGraph.of(model, stream) is not None

    assert is_recorded(model.init_state()) and not is_recorded(eager.stream, eager.model)
    for number in (1, 2, 5):
        assert is_recorded(model.init_state(number)), "a batch"
    own = model.init_state(own_policies=True)
    assert is_recorded(own)
    with pytest.warns(DeprecationWarning, match="results of frames have their costs"):
        assert model.replays(own)
    for part in (own.policies[0], model.task):
        with monkeypatch.context() as patch:
            patch.setattr(type(part), "capturable", False)
            assert not is_recorded(model.init_state())
    assert is_recorded(model.init_state())
    monkeypatch.undo()
    if device == "cpu":
        assert not is_recorded(model.init_state()), "a device without graphs"


@pytest.mark.usefixtures("replayed_lessons")
def test_another_task_counts_from_the_next_frame_on(folder, built, device):
    class Doubled(InstanceTask):
        def block_gain(self, current, previous, grid_shape):
            return 2 * super().block_gain(current, previous, grid_shape)

    eager, graph = sides(folder, built, device)
    task, gains = graph.model.task, []
    for index, image in enumerate(clip(device, 8)):
        (_, told), (_, found) = both(eager, graph, image)
        gains += [(told["gain"].item(), found["gain"].item())] if index else []
        if index == 4:
            for side in (eager, graph):
                side.model.task = Doubled(task.num_classes, task.pixels_per_block)
    for side in (eager, graph):
        side.model.task = task
    expected, found = zip(*gains)
    assert max(expected[4:]) > 0.1
    assert found == pytest.approx(expected, rel=0.05, abs=1e-3)


def test_a_policy_of_the_stream(folder, built, device):
    eager, graph = sides(folder, built, device)
    for side in (eager, graph):
        torch.manual_seed(3)
        side.stream = VideoStream(policy=FrameDifference(target=0.25))
        side.learner = None
    for image in clip(device, 3):
        results = both(eager, graph, image)
    assert results[1][0].executed == 0.25


def test_a_network_that_cannot_be_traced_is_not_captured(folder, built, device, monkeypatch):
    eager, graph = sides(folder, built, device, "MODEL.BLOCKCOPY.POLICY.NAME", "NoBlocks")
    for side in (eager, graph):
        head = side.model.base.proposal_generator.rpn_head
        monkeypatch.setattr(head, "_untraceable", True)
    for image in clip(device, 3):
        (expected, _), (found, _) = eager.frame(image), graph.frame(image)
        assert_same_output(expected, found)
        assert found.frame.shape == expected.frame.shape
    assert FrameGraph.of(graph.model, graph.stream) is None and graph.stream.frames == 3


def test_a_switch_to_eager_frames_goes_on(folder, built, device):
    eager, graph = sides(folder, built, device)
    for index, image in enumerate(clip(device, 6)):
        results = eager.frame(image), graph.frame(image)
        assert torch.equal(results[0][0].grid.active, results[1][0].grid.active)
        assert_same_output(results[0][0], results[1][0])
        graph.model.cuda_graph = index < 2
    graph.model.cuda_graph = True
    assert graph.stream.graph is None and graph.stream.frames == 6
