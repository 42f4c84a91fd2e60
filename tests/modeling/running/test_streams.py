"""Batches of streams, cuts, and blocks that are refreshed, on small networks."""

import copy

import pytest
import torch

from blockcopy_d2.modeling import StreamBatch, StreamPool, VideoStream, learn
from blockcopy_d2.policy import Decision, FrameDifference, NoBlocks, OnlineLearner, Policy
from blockcopy_d2.sparse import BlockGrid
from tests.modeling.test_meta_arch import assert_same, build_pair

BLOCK, SIZE = 64, (128, 192)


@pytest.fixture(scope="module", params=["mask-rcnn", "semantic"])
def models(request):
    return build_pair(request.param)


@pytest.fixture(scope="module")
def semantic():
    return build_pair("semantic")


@pytest.fixture(autouse=True)
def restored(request):
    """Tests may change the policy and the settings of the models, which they share."""
    names = {"models", "semantic"} & set(request.fixturenames)
    built = [request.getfixturevalue(name)[0] for name in names]
    names = ("policy", "scene_cut", "refresh_every", "dense_above")
    before = [(model, {name: getattr(model, name) for name in names}) for model in built]
    yield
    for model, settings in before:
        for name, value in settings.items():
            setattr(model, name, value)


def clip(seed, number=4):
    """A scene of coarse colours, in which a square moves."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 255 * torch.rand(1, 3, 4, 6, generator=generator)
    still = torch.nn.functional.interpolate(coarse, size=SIZE, mode="bilinear")[0]
    frames = []
    for index in range(number):
        image = still.clone()
        image[:, 40:80, 20 * index : 20 * index + 40] = 20 * seed
        frames.append({"image": image, "height": SIZE[0], "width": SIZE[1]})
    return frames


def grid_of(*streams):
    """BlockGrid of 2 x 3 blocks, from the numbers of the active ones of every stream."""
    active = torch.zeros(len(streams), 6, dtype=torch.bool)
    for n, blocks in enumerate(streams):
        active[n, list(blocks)] = True
    return BlockGrid(active.view(-1, 2, 3), block_size=BLOCK, image_size=SIZE)


def dense(stock, inputs):
    with torch.no_grad():
        return stock([inputs])[0]


# ---------------------------------------------------------------- batches


def test_a_batch_is_its_streams_one_by_one(models):
    model, _ = models
    clips = [clip(1), clip(2), clip(3)]
    grids = [[range(6)] * 3, [[0, 1], [], range(6)], [[4], [2, 5], [0]], [[], [], []]]
    batch, alone = model.init_state(3), [model.init_state() for _ in clips]
    for tick, blocks in enumerate(grids):
        inputs = [frames[tick] for frames in clips]
        together = model.step_batch(inputs, batch, grid=grid_of(*blocks))
        for n, result in enumerate(together):
            expected = model.step(inputs[n], alone[n], grid=grid_of(blocks[n]))
            assert_same(expected.output, result.output, exact=False)
            assert torch.equal(result.grid.active, expected.grid.active)
            assert torch.equal(result.age, expected.age)
            assert torch.equal(batch.frame_state[n], alone[n].frame_state[0])
    assert batch.counts == [4, 4, 4] and batch.frame_index.tolist() == [4, 4, 4]


def test_the_policy_decides_for_every_stream_as_if_alone(models):
    model, _ = models
    batch, alone = model.init_state(2), [model.init_state() for _ in range(2)]
    for inputs in zip(clip(1, 2), clip(2, 2)):
        results = model.step_batch(list(inputs), batch, learning=True)
        expected = [model.step(x, state) for x, state in zip(inputs, alone)]
    for result, other in zip(results, expected):
        assert result.decision.logits.shape == (1, 2, 3) and result.decision.logits.requires_grad
        torch.testing.assert_close(
            result.decision.logits.detach(), other.decision.logits, rtol=1e-3, atol=1e-4
        )
        assert result.observation.frame.shape[0] == 1


def test_streams_come_and_go(models):
    model, _ = models
    model.policy = FrameDifference(target=0.3)
    first, second, third = clip(1, 6), clip(2, 2), clip(3, 3)
    batch, alone = model.init_state(2), [model.init_state(), model.init_state()]
    # The second slot holds one video, is empty for a tick, and then holds another.
    slots = [second[0], second[1], None, third[0], third[1], third[2]]
    for tick, inputs in enumerate(slots):
        if tick == 3:
            batch.reset(1)
            alone[1] = model.init_state()
        before = copy.deepcopy(batch.age)
        results = model.step_batch([first[tick], inputs], batch)
        expected = model.step(first[tick], alone[0])
        assert_same(expected.output, results[0].output, exact=False)
        assert torch.equal(results[0].grid.active, expected.grid.active)
        if inputs is None:
            assert results[1] is None and torch.equal(batch.age[1], before[1])
            continue
        expected = model.step(inputs, alone[1])
        assert_same(expected.output, results[1].output, exact=False)
        assert torch.equal(results[1].grid.active, expected.grid.active)
        assert results[1].is_first == (tick in (0, 3)) == results[1].grid.is_full
    assert batch.counts == [6, 3]


def test_a_slot_may_stay_empty_at_first(semantic):
    model, _ = semantic
    model.policy = FrameDifference(target=0.5)
    batch, alone = model.init_state(2), model.init_state()
    frames = clip(1, 3)
    model.step_batch([frames[0], None], batch)
    for inputs in frames[:2]:
        results = model.step_batch([frames[1], inputs], batch)
        expected = model.step(inputs, alone)
        assert torch.equal(results[1].grid.active, expected.grid.active)
        assert_same(expected.output, results[1].output, exact=False)


def test_inputs_that_do_not_fit_a_batch_are_named(semantic):
    model, _ = semantic
    frame = clip(1, 1)[0]
    other = {"image": frame["image"][:, :96]}
    with pytest.raises(ValueError, match=r"\(96, 192\), \(128, 192\).*images of one size"):
        model.step_batch([frame, other], model.init_state(2))
    with pytest.raises(ValueError, match=r"but 3 of the batch has \(96, 192\) and 1 has \(128"):
        model.step_batch([None, frame, frame, other], model.init_state(4))
    for call in (
        lambda: model.step(frame["image"], model.init_state()),
        lambda: model.step_batch([frame, [frame]], model.init_state(2)),
        lambda: model.memory_per_stream(frame["image"].numpy()),
    ):
        with pytest.raises(TypeError, match="input of a frame is .*; expected a dict"):
            call()
    with pytest.raises(ValueError, match="1 inputs for 2 streams"):
        model.step_batch([frame], model.init_state(2))
    with pytest.raises(ValueError, match="batch of 2 streams with 1 policies"):
        StreamBatch(2, policies=[NoBlocks()])


def test_streams_learn_one_policy_or_one_each(semantic):
    model, _ = semantic
    shared = OnlineLearner(copy.deepcopy(model.policy), target=0.3, update_every=1)
    own = model.init_state(2, own_policies=True)
    assert own.policies[0] is not own.policies[1] and model.policy not in own.policies
    learners = [OnlineLearner(policy, target=0.3, update_every=1) for policy in own.policies]
    before = copy.deepcopy(model.policy.state_dict())
    for inputs in zip(clip(1, 3), clip(2, 3)):
        results = model.step_batch(list(inputs), own, learning=[True, False])
        if not results[0].is_first:
            assert results[0].decision.logits.requires_grad
            assert not results[1].decision.logits.requires_grad
            learn(learners[0], model, results[:1])
    weight = "network.head.2.weight"
    assert not torch.equal(own.policies[0].state_dict()[weight], before[weight])
    assert torch.equal(own.policies[1].state_dict()[weight], before[weight])
    assert torch.equal(model.policy.state_dict()[weight], before[weight])

    model.policy = copy.deepcopy(model.policy)
    shared = OnlineLearner(model.policy, target=0.3, update_every=1)
    batch = model.init_state(2)
    for inputs in zip(clip(1, 3), clip(2, 3)):
        metrics = learn(shared, model, model.step_batch(list(inputs), batch, learning=True))
    assert shared.state_dict()["frames"] == 2 and metrics["skipped_updates"] == 0
    assert not torch.equal(model.policy.state_dict()[weight], before[weight])


# ---------------------------------------------------------------- cuts


def test_after_a_cut_the_output_is_the_dense_one(models):
    model, stock = models
    model.policy, model.scene_cut = NoBlocks(), 0.33
    scenes = [clip(seed, 3) for seed in (1, 5, 9)]
    stream = model.init_state()
    for scene in scenes:
        for index, inputs in enumerate(scene):
            result = model.step(inputs, stream)
            starts = index == 0
            assert bool(result.cut) == (starts and scene is not scenes[0])
            assert result.grid.is_full == starts and result.grid.is_empty == (not starts)
            if starts:
                assert_same(dense(stock, inputs), result.output, exact=False)
                assert not result.age.any()
    assert result.age.unique().tolist() == [2]


def test_a_batch_cuts_only_the_stream_that_does(semantic):
    model, _ = semantic
    model.policy, model.scene_cut = NoBlocks(), 0.33
    batch = model.init_state(2)
    model.step_batch([clip(1)[0], clip(2)[0]], batch)
    results = model.step_batch([clip(1)[1], clip(7)[0]], batch)
    assert [bool(r.cut) for r in results] == [False, True]
    assert results[0].grid.is_empty and results[1].grid.is_full


def test_a_cut_teaches_nothing(semantic):
    model, _ = semantic
    model.policy, model.scene_cut = copy.deepcopy(model.policy), 0.33
    learner = OnlineLearner(model.policy, target=0.3, update_every=1)
    stream = model.init_state()
    frames = [*clip(1, 2), clip(7, 1)[0], clip(7, 2)[1]]
    for index, inputs in enumerate(frames):
        before = copy.deepcopy(learner.state_dict())
        weights = copy.deepcopy(model.policy.state_dict())
        result = model.step(inputs, stream, learning=True)
        learn(learner, model, [result])
        unchanged = all(
            torch.equal(value, weights[key]) for key, value in model.policy.state_dict().items()
        )
        assert bool(result.cut) == (index == 2)
        assert unchanged == (index in (0, 2))
        if result.cut:
            assert model.information_gain(result).isnan().all()
            assert learner.state_dict()["moving_cost"] == before["moving_cost"]
    assert learner.state_dict()["skipped_updates"] == 1


def test_cuts_are_left_to_the_policy_where_they_are_off(semantic):
    model, _ = semantic
    model.policy, model.scene_cut = NoBlocks(), 0.0
    stream = model.init_state()
    model.step(clip(1)[0], stream)
    result = model.step(clip(7)[0], stream)
    assert result.grid.is_empty and not result.cut


# ---------------------------------------------------------------- ages


def test_no_block_is_older_than_it_may(models):
    model, stock = models
    model.policy, model.refresh_every = NoBlocks(), 3
    stream = VideoStream()
    (still,) = clip(1, 1)
    last = None
    for index in range(9):
        result = model.step(still, stream)
        assert result.age.max() <= 2
        assert torch.equal(result.age == 0, result.grid.active)
        if index:
            assert result.grid.num_active <= 2
            old = last + 1
            assert torch.equal(result.age, torch.where(result.grid.active, 0, old).int())
        last = result.age
    # Refreshed features of a still picture are as they were.
    assert_same(dense(stock, still), result.output, exact=False)


def test_refreshed_blocks_count_as_cost(semantic):
    model, _ = semantic
    model.policy, model.refresh_every = copy.deepcopy(model.policy), 1
    learner = OnlineLearner(model.policy, target=0.3, update_every=4)
    stream = VideoStream()
    for inputs in clip(1, 3):
        metrics = learn(learner, model, [model.step(inputs, stream)])
    assert metrics["cost"] == 1


# ---------------------------------------------------------------- dense frames


class Corner(Policy):
    """Executes the first blocks of every stream, of a given number."""

    def __init__(self, *counts):
        super().__init__()
        self.counts = counts

    def forward(self, observation):
        active = torch.zeros(len(self.counts), 6, dtype=torch.bool)
        for n, count in enumerate(self.counts):
            active[n, :count] = True
        return Decision(active=active.view(-1, 2, 3))


def test_a_stream_runs_densely_above_a_share(semantic):
    model, _ = semantic
    model.scene_cut, model.dense_above = 0.0, 0.5
    batch = model.init_state(3)
    model.step_batch([clip(seed, 1)[0] for seed in (1, 2, 3)], batch)
    model.policy = Corner(3, 4, 6)
    results = model.step_batch([clip(seed, 2)[1] for seed in (1, 2, 3)], batch)
    assert [result.grid.num_active for result in results] == [3, 6, 6]
    assert [result.decision.active.sum().item() for result in results] == [3, 4, 6]
    model.dense_above = 1.0
    results = model.step_batch([clip(seed, 2)[1] for seed in (1, 2, 3)], batch)
    assert [result.grid.num_active for result in results] == [3, 4, 6]


def test_a_dense_frame_costs_all_blocks_and_was_not_decided(models):
    model, stock = models
    model.policy, model.scene_cut, model.dense_above = copy.deepcopy(model.policy), 0.0, 0.0
    learner = OnlineLearner(model.policy, target=0.3, update_every=1)
    stream = VideoStream()
    for inputs in clip(1, 3):
        result = model.step(inputs, stream, learning=True)
        metrics = learn(learner, model, [result])
    assert result.grid.is_full and not result.decision.active.all()
    assert result.decision.active.any(), "above 0, not at 0"
    assert metrics["cost"] == 1
    assert_same(dense(stock, inputs), result.output, exact=False)


def turns(pool, names, rounds, numbered):
    for index in range(rounds):
        for name in names:
            pool.get(name, index if numbered else None)


@pytest.mark.parametrize("numbered", [True, False])
def test_more_videos_than_streams_are_announced_once(caplog, numbered):
    turns(StreamPool(max_streams=3), "abcde", rounds=4, numbered=numbered)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "5 videos take turns, but MODEL.BLOCKCOPY.MAX_STREAMS is 3" in record.getMessage()
    assert "Set MODEL.BLOCKCOPY.MAX_STREAMS to 5" in record.getMessage()


def test_videos_one_after_the_other_need_no_announcement(caplog):
    pool = StreamPool(max_streams=2)
    turns(pool, "ab", rounds=4, numbered=True)
    for name in "cdecd":
        # Each from its first frame, some of them twice.
        turns(pool, name, rounds=3, numbered=True)
    assert not caplog.records
