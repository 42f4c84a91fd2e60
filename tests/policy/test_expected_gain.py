"""The policy that expects gains, its budget, its features and its learner."""

import dataclasses
import math

import pytest
import torch

from blockcopy_d2.policy import Decision, ExpectedGain, GainLearner, GainNetwork, Observation
from blockcopy_d2.policy.block_features import FEATURES, block_features
from blockcopy_d2.policy.expected_gain import largest_blocks

GRID = (4, 8)


def observation(seed=0, grid_shape=GRID, streams=1, side=8, frame_index=1, num_classes=2):
    generator = torch.Generator().manual_seed(seed)
    size = (side * grid_shape[0], side * grid_shape[1])

    def draw(*shape):
        return torch.rand(shape, generator=generator)

    return Observation(
        frame=draw(streams, 3, *size),
        frame_state=draw(streams, 3, *size),
        output=draw(streams, num_classes, *size),
        grid=torch.zeros(streams, 1, *grid_shape),
        frame_index=frame_index,
        age=torch.zeros(streams, *grid_shape, dtype=torch.int32),
        gain=draw(streams, *grid_shape),
    )


def all_features(seen):
    return block_features(seen, torch.ones(3), GainNetwork().floors)


def features(seen):
    return dict(zip(FEATURES, all_features(seen).unbind(1), strict=True))


@pytest.mark.parametrize("target", [0.0, 0.05, 0.15, 0.29, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("grid_shape", [(1, 3), (2, 4), (4, 8), (9, 16)])
def test_the_budget_holds_over_any_frames_in_a_row(target, grid_shape):
    policy, blocks = ExpectedGain(target=target), math.prod(grid_shape)
    counts = [
        int(policy(observation(seed % 7, grid_shape, frame_index=seed)).active.sum())
        for seed in range(1, 130)
    ]
    total = torch.tensor([0, *counts], dtype=torch.float64).cumsum(0)
    for length in (1, 2, 10, 100):
        executed = total[length:] - total[:-length]
        assert ((executed - target * blocks * length).abs() < 1 + 1e-4).all(), length


def test_a_new_target_holds_from_the_next_frame_on():
    policy = ExpectedGain(target=0.3)
    learner = GainLearner(policy, target=0.3)
    assert policy(observation()).active.float().mean() == pytest.approx(0.3, abs=1 / 32)
    learner.target = 0.75
    assert policy.target == learner.target == 0.75
    assert policy(observation()).active.sum() == 24
    with pytest.raises(ValueError, match="target"):
        learner.target = 1.5


def test_the_largest_scores_are_executed():
    score = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    active = largest_blocks(score, torch.tensor(0.2, dtype=torch.float64), torch.tensor([4, 5, 9]))
    assert active.sum(dim=(1, 2)).tolist() == [7, 7, 7]
    for one, picked in zip(score, active, strict=True):
        assert one[picked].min() > one[~picked].max()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_stream_without_numbers_executes_all(bad):
    seen = observation(streams=2)
    seen.output[1, 0, 3, 3] = bad
    active = ExpectedGain(target=0.25)(seen).active
    assert active[0].sum() == 8 and active[1].all()


def test_every_block_is_looked_at_in_the_end():
    """Even blocks of which no gain is expected run in the end."""
    seen = observation()
    seen.frame_state[:] = seen.frame
    seen.frame[..., :8, :16] += 5
    seen.output[..., 16:] = 0
    seen.gain[:] = 0
    seen.gain[0, 0, :2] = 1
    policy, looks = ExpectedGain(target=0.125), torch.zeros(1, *GRID)
    for index in range(1, 200):
        active = policy(dataclasses.replace(seen, frame_index=index)).active
        seen.age = torch.where(active, 0, seen.age + 1)
        looks += active
    assert looks.min() >= 3
    assert looks[0, 0, :2].min() > 3 * looks.flatten()[2:].max()


@pytest.mark.parametrize("target", [0.05, 0.15, 0.5])
def test_no_block_waits_for_long(target):
    """However much changes elsewhere: here half of the blocks, each by 20 times the rest."""
    seen, oldest = observation(grid_shape=(4, 16)), 0
    seen.frame_state[..., 64:] = seen.frame[..., 64:] + 0.02
    seen.gain[..., 8:] *= 0.02
    policy, longest = ExpectedGain(target=target), round(15 / target)
    for index in range(1, 3 * longest):
        active = policy(dataclasses.replace(seen, frame_index=index)).active
        seen.age = torch.where(active, 0, seen.age + 1)
        oldest = max(oldest, int(seen.age.max()))
    assert 2 / target < oldest < longest


@pytest.mark.parametrize("age", [1, 3, 6])
def test_what_comes_into_an_empty_picture_is_seen_at_once(age):
    """Without an output, and so without its edges, blocks go by their difference."""
    seen = observation(grid_shape=(8, 16))
    seen.output[:] = 0
    seen.gain[:] = 0
    seen.frame_state[:] = seen.frame + 0.05 * torch.randn_like(seen.frame)
    seen.frame[..., 24:32, 64:72] += 3
    seen.age = torch.randint(0, 7, (1, 8, 16), dtype=torch.int32)
    seen.age[0, 3, 8] = age
    assert ExpectedGain(target=0.15)(seen).active[0, 3, 8]


def test_streams_do_not_mix():
    both = observation(streams=2, frame_index=torch.tensor([3, 4]))
    policy = ExpectedGain(target=0.3)
    together = policy(both)
    for n, one in enumerate(both.split()):
        alone = policy(one)
        assert torch.equal(together.active[n : n + 1], alone.active)
        torch.testing.assert_close(together.logits[n : n + 1], alone.logits)


# ----------------------------------------------------------------------------------------- pace


def run(policy, changes, streams=1, grid_shape=(6, 8), targets=()):
    """
    Returns:
        Tensor: (frames, streams), shares executed in frames in which so much changes.
    """
    account, shares, age = torch.full((streams, 2), torch.nan), [], None
    for index, change in enumerate(changes, start=1):
        seen = observation(index % 11, grid_shape, streams, frame_index=index)
        change = torch.as_tensor(change, dtype=torch.float32).view(-1, 1, 1, 1)
        seen.frame_state = seen.frame + change * (seen.frame_state - seen.frame)
        age = seen.age if age is None else age
        if index in dict(targets):
            policy.target = dict(targets)[index]
        decision = policy(dataclasses.replace(seen, age=age, account=account))
        age = torch.where(decision.active, 0, age + 1)
        account = decision.account
        shares.append(decision.active.float().mean(dim=(1, 2)))
    return torch.stack(shares)


COURSES = {
    "even": [1.0] * 260,
    "by turns": [0.2, 0.2, 3.0] * 87,
    "quiet for long": [1.0] * 60 + [0.01] * 100 + [1.0] * 100,
    "busy for long": [0.1] * 60 + [5.0] * 100 + [0.1] * 100,
    "a still picture": [1.0] * 30 + [0.0] * 230,
    "ever more": [1.05**index for index in range(260)],
}


@pytest.mark.parametrize("course", COURSES)
@pytest.mark.parametrize("target", [0.05, 0.15, 0.7])
def test_a_burst_holds_the_budget_and_its_limits(target, course):
    shares = run(ExpectedGain(target=target, burst=2.0), COURSES[course])[:, 0]
    block = 1 / 48
    assert shares.max() <= 2 * target + block and shares.min() >= target / 2 - block
    means = shares.unfold(0, 100, 1).mean(dim=1)
    assert (means - target).abs().max() < 0.03
    assert abs(shares.sum() - target * len(shares)) <= 1 + block
    # From the start on, also in a clip of 20 frames.
    frames = torch.arange(1, len(shares) + 1)
    assert ((shares.cumsum(0) - target * frames).abs() <= 0.02 * frames + block).all()


@pytest.mark.parametrize(
    "target, burst, grid_shape", [(0.05, 1.5, (2, 3)), (0.15, 2.0, (1, 1)), (0.7, 1.05, (1, 2))]
)
def test_a_burst_holds_the_budget_of_a_few_blocks(target, burst, grid_shape):
    """Whole blocks are taken, though the target and its burst are less than one."""
    policy = ExpectedGain(target=target, burst=burst)
    shares = run(policy, COURSES["by turns"], grid_shape=grid_shape, targets=[(130, 0.3)])[:, 0]
    for part, wanted in ((shares[20:129], target), (shares[149:], 0.3)):
        assert (part.unfold(0, 100, 1).mean(dim=1) - wanted).abs().max() < 0.03


def test_busy_frames_take_more_than_quiet_ones():
    changes = COURSES["by turns"]
    shares = run(ExpectedGain(target=0.15, burst=2.0), changes)[20:, 0]
    busy = torch.tensor(changes[20:]) > 1
    assert shares[busy].mean() > 1.6 * 0.15 and shares[~busy].mean() < 0.8 * 0.15


def test_a_burst_of_streams_does_not_mix():
    turns = torch.tensor(COURSES["by turns"][:60])
    both = torch.stack([turns, turns.roll(1)], dim=1)
    policy = ExpectedGain(target=0.15, burst=2.0)
    shares = run(policy, both, streams=2)
    for n in range(2):
        busy = both[20:, n] > 1
        assert shares[20:][busy, n].mean() > 1.5 * shares[20:][~busy, n].mean()


def test_a_burst_follows_a_new_target():
    shares = run(ExpectedGain(target=0.05, burst=2.0), COURSES["by turns"], targets=[(120, 0.6)])
    means = shares[119:, 0].unfold(0, 100, 1).mean(dim=1)
    assert (means - 0.6).abs().max() < 0.03


@pytest.mark.parametrize("burst", [0.5, torch.nan, 11.0])
def test_a_burst_that_makes_no_sense_is_refused(burst):
    with pytest.raises(ValueError, match="burst"):
        ExpectedGain(target=0.3, burst=burst)


# ------------------------------------------------------------------------------------- features


def test_units_do_not_count():
    seen = observation()
    other = dataclasses.replace(
        seen, frame=7 * seen.frame, frame_state=7 * seen.frame_state, gain=300 * seen.gain
    )
    torch.testing.assert_close(all_features(other), all_features(seen))


def test_a_change_counts_at_the_edges_of_the_output():
    """Two blocks change alike, one has the border of an object."""
    seen = observation()
    seen.frame_state = seen.frame.clone()
    seen.frame[..., :8, :16] += 1
    seen.output[:] = 0
    seen.output[:, 1, 2:6, 2:6] = 0.9
    found = features(seen)
    difference = found["difference"][0, 0]
    torch.testing.assert_close(difference[0], difference[1])
    assert found["edge_difference"][0, 0, 0] > found["edge_difference"][0, 0, 1] + 1.5
    least = math.log(FEATURES["edge_difference"][1])
    assert (found["edge_difference"].flatten()[2:] < least + 1e-6).all()
    # Sixteen of 64 pixels have a score of 0.9.
    doubt = torch.ones(32)
    doubt[0] = (48 + 16 * 0.1) / 64
    torch.testing.assert_close(found["doubt"].flatten(), (doubt / doubt.mean() + 0.1).log())


def test_a_peak_is_of_a_few_pixels():
    seen = observation()
    seen.frame_state = seen.frame.clone()
    seen.frame[..., 0:4, 0:4] += 1
    seen.frame[..., :8, 8:16] += 0.25
    found = features(seen)
    difference = found["difference"][0, 0]
    torch.testing.assert_close(difference[0], difference[1], rtol=1e-4, atol=1e-4)
    peaks = torch.tensor([1, 0.25]) / (1.25 / 32) + 0.1
    torch.testing.assert_close(found["peak"][0, 0, :2], peaks.log(), rtol=1e-4, atol=1e-4)


def test_gains_that_are_not_known_count_as_the_mean_of_the_others():
    seen = observation()
    seen.gain[:] = -1
    found = features(seen)
    assert torch.equal(found["gain"], found["gain"][0, 0, 0].expand_as(found["gain"]))
    seen.gain[0, 1, 1], seen.gain[0, 2, 6] = 0.1, 0.3
    found = features(seen)
    relative = torch.ones(GRID)
    relative[1, 1], relative[2, 6] = 0.5, 1.5
    expected = (relative + FEATURES["gain"][1]).log()
    torch.testing.assert_close(found["gain"][0], expected, rtol=1e-4, atol=1e-4)
    # Next to the smaller gain the mean is larger.
    near = found["gain_nearby"][0]
    assert (near[1:, 5:] == near.max()).all() and (near[:, :5] == near.min()).all()


@pytest.mark.parametrize("what", ["frame_state", "output", "gain"])
def test_nothing_is_no_division_by_zero(what):
    seen = observation()
    value = seen.frame if what == "frame_state" else torch.zeros_like(getattr(seen, what))
    decision = ExpectedGain(target=0.25)(dataclasses.replace(seen, **{what: value}))
    assert decision.logits.isfinite().all() and decision.active.sum() == 8


# -------------------------------------------------------------------------------------- learning


def test_the_loss_is_the_cross_entropy_of_shares_of_the_gain():
    learner = GainLearner(ExpectedGain(target=0.5), target=0.5, update_every=100)
    active = torch.tensor([[[True, False, True], [True, False, False]]])
    logits = torch.tensor([[[0.5, 9.0, -1.0], [0.2, 3.0, 1.0]]])
    gain = torch.tensor([[[0.3, 0.7, 0.0], [0.1, 0.0, 0.6]]])
    told = learner.learn(Decision(active, logits), gain)
    expected = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64).softmax(0)
    loss = -(0.75 * expected[0].log() + 0.25 * expected[2].log())
    assert told["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert told["entropy"].item() == pytest.approx(-(expected * expected.log()).sum().item())
    assert told["cost"] == 0.5 and told["reward"].item() == pytest.approx(0.4 / 6)


def test_a_gain_counts_times_the_evidence():
    learner = GainLearner(ExpectedGain(target=0.5), target=0.5, update_every=100)
    active, logits = torch.tensor([[[True, True, False]]]), torch.tensor([[[0.0, 1.0, 2.0]]])
    gain, evidence = torch.tensor([[[0.2, 0.4, 0.9]]]), torch.tensor([[[0.6, 0.1, 7.0]]])
    told = learner.learn(Decision(active, logits, evidence=evidence), gain)
    expected = torch.tensor([0.0, 1.0]).log_softmax(0)
    loss = -(0.75 * expected[0] + 0.25 * expected[1])
    assert told["loss"].item() == pytest.approx(loss.item())
    assert told["gain"].item() == pytest.approx(0.2)


def test_the_evidence_is_the_difference_of_the_picture():
    policy, seen = ExpectedGain(target=0.5, pixel_std=(1.0, 1.0, 1.0)), observation(streams=2)
    evidence = policy(seen).evidence
    blocks = (seen.frame - seen.frame_state).abs().mean(dim=1).unfold(1, 8, 8).unfold(2, 8, 8)
    blocks = blocks.mean(dim=(3, 4))
    torch.testing.assert_close(evidence / evidence.mean(), blocks / blocks.mean())
    assert torch.equal(policy(seen).split()[1].evidence, evidence[1:])
    assert not evidence.requires_grad
    with torch.no_grad():
        assert policy(seen).evidence is None


@pytest.mark.parametrize("knows", [True, False])
def test_noise_of_a_detector_teaches_nothing(knows):
    """
    Objects jitter in the output, changed or not, which is most of the gain. A policy that knows
    nothing of the difference learns to look at them all, and misses changes.
    """
    policy = ExpectedGain(target=0.25)
    learner = GainLearner(policy, target=0.25, update_every=1, learning_rate=0.02)
    found = []
    for seed in range(150):
        seen, generator = observation(seed), torch.Generator().manual_seed(seed)
        draw = torch.rand(3, *GRID, generator=generator)
        has_object = draw[0] < 0.6
        changed = has_object & (draw[1] < 0.3)
        wide = [x.repeat_interleave(8, 0).repeat_interleave(8, 1) for x in (has_object, changed)]
        seen.output = torch.where(wide[0], seen.output, 0.0)
        noise = 0.1 * (seen.frame - seen.frame_state)
        seen.frame_state = seen.frame - torch.where(wide[1], 4 * noise, noise)
        seen.gain = draw[2][None] * has_object
        decision = policy(seen)
        found.append((decision.active[0] & changed).sum() / changed.sum().clamp_min(1))
        gain = 0.5 * draw[2] * has_object + 0.3 * changed
        decision = decision if knows else dataclasses.replace(decision, evidence=None)
        learner.learn(decision, gain[None])
    before, after = sum(found[:30]) / 30, sum(found[-60:]) / 60
    assert (after > before - 0.02) == knows


def test_blocks_that_were_not_executed_say_nothing():
    losses = []
    for unseen in (0.0, 5.0):
        learner = GainLearner(ExpectedGain(target=0.5), target=0.5, update_every=100)
        active = torch.tensor([[[True, True, False]]])
        gain = torch.tensor([[[0.2, 0.4, unseen]]])
        losses.append(learner.learn(Decision(active, torch.zeros(1, 1, 3)), gain)["loss"].item())
    assert losses[0] == losses[1] == pytest.approx(math.log(2))


@pytest.mark.parametrize("gain", [torch.nan, 0.0])
def test_frames_that_teach_nothing_change_nothing(gain):
    policy = ExpectedGain(target=0.3)
    learner = GainLearner(policy, target=0.3, update_every=1, weight_decay=0.0)
    for seed in range(3):
        told = learner.learn(policy(observation(seed)), torch.full((1, *GRID), gain))
    assert not policy.network.correction.any() and told["loss"] == 0


def test_it_learns_where_the_gain_is():
    """Gain follows the picture's texture here, which has no weight in the initial policy."""
    policy = ExpectedGain(target=0.25)
    learner = GainLearner(policy, target=0.25, update_every=1, learning_rate=0.01)
    shares = []
    for seed in range(200):
        seen = observation(seed)
        smooth = torch.rand(1, 1, *GRID, generator=torch.Generator().manual_seed(seed)) < 0.5
        smooth = smooth.repeat_interleave(8, 2).repeat_interleave(8, 3)
        noise = seen.frame - seen.frame_state
        seen.frame = torch.where(smooth, 0.5, seen.frame)
        seen.frame_state = seen.frame - noise
        texture = features(seen)["texture"]
        gain = (texture > texture.median()).float() + 0.01
        decision = policy(seen)
        shares.append((gain * decision.active).sum() / gain.sum())
        learner.learn(decision, gain)
    learned = policy.network.correction / policy.network.deviations
    correction = dict(zip(FEATURES, learned.tolist(), strict=True))
    assert correction["texture"] > 0.1 and correction["texture"] == max(correction.values())
    # At best eight of about sixteen.
    assert shares[0] < 0.25 and sum(shares[-50:]) / 50 > 0.45


@pytest.mark.parametrize("seed", range(3))
def test_a_few_frames_without_a_common_tendency_change_next_to_nothing(seed):
    """A clip of 20 frames, at the default rate."""
    policy = ExpectedGain(target=0.25)
    learner = GainLearner(policy, target=0.25)
    for index in range(100 * seed, 100 * seed + 20):
        gain = torch.rand(1, *GRID, generator=torch.Generator().manual_seed(index + 7))
        with torch.set_grad_enabled(learner.wants_graph()):
            decision = policy(observation(index))
        learner.learn(decision, gain)
    assert 0 < policy.network.correction.abs().max() < 0.01


def test_learning_goes_on_from_its_state():
    def run(policy, learner, seeds):
        for seed in seeds:
            gain = torch.rand(1, *GRID, generator=torch.Generator().manual_seed(seed))
            learner.learn(policy(observation(seed)), gain)

    sides = []
    for stops in (False, True):
        policy = ExpectedGain(target=0.3)
        learner = GainLearner(policy, target=0.3, update_every=2)
        run(policy, learner, range(4))
        if stops:
            states = policy.state_dict(), learner.state_dict()
            policy = ExpectedGain(target=0.3)
            learner = GainLearner(policy, target=0.3, update_every=2)
            policy.load_state_dict(states[0])
            learner.load_state_dict(states[1])
        run(policy, learner, range(4, 9))
        sides.append(policy.network.correction.detach())
    assert sides[0].any() and torch.equal(*sides)


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("change", [-0.5, 0.5, 3.0])
def test_a_correction_changes_the_order_of_blocks_but_not_their_spread(feature, change):
    """Larger differences would look at blocks of large gain more often than their ages tell."""
    network, seen = GainNetwork(), observation(0, streams=2)
    before = network(seen).detach()
    network.correction.data[list(FEATURES).index(feature)] = change
    after = network(seen).detach()
    torch.testing.assert_close(after.std(dim=(1, 2)), before.std(dim=(1, 2)))
    assert not torch.equal(after.flatten(1).argsort(), before.flatten(1).argsort())


def test_all_weights_times_two_are_the_same_and_those_that_fall_to_nothing_do_not_grow():
    network, seen = GainNetwork(), observation(0)
    before = network(seen).detach()
    network.correction.data.copy_(network.prior * network.deviations)
    torch.testing.assert_close(network(seen).detach(), before)
    network.correction.data.copy_(-0.9 * network.prior * network.deviations)
    torch.testing.assert_close(network(seen).detach(), 0.2 * before)
    network.correction.data.copy_(-network.prior * network.deviations)
    assert not network(seen).any()


def test_its_state_is_the_correction_alone():
    assert list(ExpectedGain(target=0.3).state_dict()) == ["network.correction"]
