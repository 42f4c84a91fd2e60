import copy
import io
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from blockcopy_d2.policy import AllBlocks, Decision, LearnedPolicy, Observation, OnlineLearner

GRID = (2, 3)


def observation(seed=0, grid_shape=GRID, num_classes=1):
    generator = torch.Generator().manual_seed(seed)
    size = (1, 3, 32 * grid_shape[0], 32 * grid_shape[1])
    return Observation(
        frame=torch.randn(size, generator=generator),
        frame_state=torch.randn(size, generator=generator),
        output=torch.rand(1, num_classes, *size[2:], generator=generator),
        grid=torch.ones(1, 1, *grid_shape),
        frame_index=1,
    )


def make(seed=0, **settings):
    torch.manual_seed(seed)
    policy = LearnedPolicy(num_classes=1, seed=seed)
    return policy, OnlineLearner(policy, **{"target": 0.3, **settings})


def run_frame(policy, learner, seed, gain=None):
    with torch.set_grad_enabled(learner.wants_graph()):
        decision = policy(observation(seed))
    if gain is None:
        gain = torch.rand(1, *GRID, generator=torch.Generator().manual_seed(seed))
    return learner.learn(decision, gain)


def weights(policy):
    return torch.cat([p.detach().flatten().clone() for p in policy.parameters()])


@pytest.mark.parametrize("cost_form", ["paper", "code"])
def test_reward_and_loss_are_the_papers(cost_form):
    _, learner = make(cost_form=cost_form, cost_weight=5.0, cost_momentum=0.9, update_every=100)
    active = torch.tensor([[[True, False, True], [True, True, False]]])
    logits = torch.tensor([[[0.5, -1.0, 2.0], [0.0, -3.0, 1.0]]])
    gain = torch.tensor([[[0.1, 0.2, 0.0], [0.9, 0.0, 0.6]]])
    metrics = learner.learn(Decision(active, logits), gain)

    cost = 4 / 6
    moving_cost = 0.9 * 0.3 + 0.1 * cost
    shortfall = 0.3 - moving_cost
    if cost_form == "code":
        shortfall *= abs(shortfall)
    reward, loss = [], 0.0
    for a, z, g in zip(active.flatten(), logits.flatten(), gain.flatten(), strict=True):
        p = torch.sigmoid(z)
        sign = 1 if a else -1
        reward.append(sign * (g + 5 * shortfall))
        loss -= reward[-1] * torch.log(p if a else 1 - p)
    if cost_form == "code":
        loss /= 6
    assert metrics["cost"].item() == pytest.approx(cost)
    assert metrics["moving_cost"].item() == pytest.approx(moving_cost)
    assert metrics["reward"].item() == pytest.approx(sum(reward).item() / 6)
    assert metrics["loss"].item() == pytest.approx(loss.item())
    assert metrics["gain"].item() == pytest.approx(0.3)
    bernoulli = torch.distributions.Bernoulli(logits=logits)
    assert metrics["entropy"].item() == pytest.approx(bernoulli.entropy().mean().item())


def test_streams_of_a_batch_count_alike():
    decision = Decision(torch.tensor([[[True, False]]]), torch.tensor([[[0.3, -0.2]]]))
    gain = torch.tensor([[[0.4, 0.1]]])
    twice = Decision(decision.active.expand(2, 1, 2), decision.logits.expand(2, 1, 2))
    metrics = make()[1].learn(decision, gain), make()[1].learn(twice, gain.expand(2, 1, 2))
    for name in metrics[0]:
        assert metrics[0][name].item() == pytest.approx(metrics[1][name].item())


def test_weights_change_every_fourth_frame():
    policy, learner = make(update_every=4)
    changed, wanted = [], []
    for frame in range(9):
        before = weights(policy)
        wanted.append(learner.wants_graph())
        run_frame(policy, learner, frame)
        changed.append(not torch.equal(before, weights(policy)))
    assert changed == wanted == [False, False, False, True] * 2 + [False]


def test_a_step_is_that_of_rmsprop():
    policy, learner = make(update_every=1)
    twin = copy.deepcopy(policy)
    optimizer = torch.optim.RMSprop(twin.parameters(), lr=1e-4, weight_decay=1e-3)
    moving_cost = torch.tensor(0.3)
    for frame in range(3):
        gain = torch.rand(1, *GRID, generator=torch.Generator().manual_seed(frame))
        run_frame(policy, learner, frame, gain)
        decision = twin(observation(frame))
        executed = decision.active.float()
        moving_cost = 0.9 * moving_cost + 0.1 * executed.mean()
        value = gain + 5 * (0.3 - moving_cost)
        reward = torch.where(decision.active, value, -value)
        log_pi = torch.distributions.Bernoulli(logits=decision.logits).log_prob(executed)
        optimizer.zero_grad()
        (-(reward * log_pi).sum()).backward()
        optimizer.step()
    # If a gradient is nearly zero, its first normalized step has a random sign.
    assert (weights(policy) - weights(twin)).abs().mean() < 1e-7
    assert (weights(policy) - weights(make()[0])).abs().mean() > 1e-4


def test_high_gain_makes_a_block_likelier_and_overspending_all_less_likely():
    for gain, target, direction in ((1.0, 0.5, 1), (0.0, 0.0, -1)):
        policy, learner = make(update_every=1, target=target)
        with torch.no_grad():
            before = policy(observation()).logits
        for _ in range(10):
            run_frame(policy, learner, 0, torch.full((1, *GRID), gain))
        with torch.no_grad():
            after = policy(observation()).logits
        assert (direction * (after - before) > 0).all()


@pytest.mark.parametrize("broken", ["gain", "infinite gain", "frame", "decision"])
def test_what_is_not_finite_never_reaches_the_weights(broken):
    policy, learner = make(update_every=1)
    reference, unharmed = make(update_every=1)
    for frame in range(2):
        run_frame(policy, learner, frame)
        run_frame(reference, unharmed, frame)
    before = weights(policy), copy.deepcopy(learner.optimizer.state_dict())
    seen, gain = observation(2), torch.ones(1, *GRID)
    if broken == "frame":
        seen.frame[0, 1, 3, 3] = torch.nan
    if broken == "gain":
        gain[0, 1, 1] = torch.nan
    if broken == "infinite gain":
        gain[0, 1, 1] = torch.inf
    decision = policy(seen)
    if broken == "decision":
        decision.logits = decision.logits / torch.zeros(())
    metrics = learner.learn(decision, gain)
    assert metrics["skipped_updates"] == 1
    assert torch.equal(weights(policy), before[0])
    state = learner.optimizer.state_dict()["state"]
    for index, entry in before[1]["state"].items():
        assert torch.equal(state[index]["square_avg"], entry["square_avg"])
    run_frame(policy, learner, 3)
    assert not torch.equal(weights(policy), before[0])
    assert torch.isfinite(weights(policy)).all()


def test_a_first_update_that_is_not_finite_is_skipped_too():
    policy, learner = make(update_every=1)
    before = weights(policy)
    metrics = run_frame(policy, learner, 0, torch.full((1, *GRID), torch.nan))
    assert metrics["skipped_updates"] == 1
    assert torch.equal(weights(policy), before)
    assert torch.isfinite(metrics["moving_cost"])
    run_frame(policy, learner, 1)
    assert torch.isfinite(weights(policy)).all()
    assert not torch.equal(weights(policy), before)


def test_an_update_may_wait():
    at_once, learner = make(update_every=3)
    waiting, later = make(update_every=3, delay=2)
    start, taken = weights(at_once), []
    assert torch.equal(weights(waiting), start)
    for frame in range(6):
        for policy, teacher in ((at_once, learner), (waiting, later)):
            run_frame(policy, teacher, frame)
        taken.append(not torch.equal(weights(waiting), start))
        if frame == 2:
            updated = weights(at_once)
            assert not torch.equal(updated, start)
    assert taken == [False] * 4 + [True] * 2
    # The second update is not there yet.
    torch.testing.assert_close(weights(waiting), updated, atol=1e-7, rtol=0)


def test_what_is_not_finite_changes_nothing_later_either():
    policy, learner = make(update_every=2, delay=1)
    before = weights(policy)
    run_frame(policy, learner, 0)
    told = [run_frame(policy, learner, n, torch.full((1, *GRID), torch.nan)) for n in (1, 2)]
    assert [x["skipped_updates"].item() for x in told] == [0, 1]
    assert torch.equal(weights(policy), before)


def test_updates_follow_each_other_after_more_frames_than_they_wait():
    with pytest.raises(ValueError, match="DELAY is 2.*after 2 frames.*smaller DELAY"):
        make(update_every=2, delay=2)


@pytest.mark.parametrize("settings", [{"update_every": 2}, {"update_every": 4, "delay": 3}])
def test_a_resumed_run_continues_bit_for_bit(settings):
    policy, learner = make(**settings)
    for frame in range(5):
        run_frame(policy, learner, frame)
    file = io.BytesIO()
    torch.save({"policy": policy.state_dict(), "learner": learner.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, resumed_learner = make(seed=1, **settings)
    resumed.load_state_dict(saved["policy"])
    resumed_learner.load_state_dict(saved["learner"])
    for frame in range(5, 11):
        assert learner.wants_graph() == resumed_learner.wants_graph()
        with torch.set_grad_enabled(learner.wants_graph()):
            logits = [p(observation(frame)).logits for p in (policy, resumed)]
        active = torch.rand(1, *GRID, generator=torch.Generator().manual_seed(frame)) > 0.5
        gain = torch.rand(1, *GRID, generator=torch.Generator().manual_seed(frame))
        metrics = [
            x.learn(Decision(active, z), gain)
            for x, z in zip((learner, resumed_learner), logits, strict=True)
        ]
        for name in metrics[0]:
            assert torch.equal(metrics[0][name], metrics[1][name]), name
    assert torch.equal(weights(policy), weights(resumed))


def test_the_state_is_that_of_an_optimizer_of_the_parameters():
    policy, learner = make(update_every=1)
    other, resumed = make(seed=1, update_every=1)
    run_frame(policy, learner, 0)
    run_frame(other, resumed, 1)
    stock = torch.optim.RMSprop(policy.parameters())
    stock.load_state_dict(learner.state_dict()["optimizer"])
    resumed.load_state_dict({**learner.state_dict(), "optimizer": stock.state_dict()})
    for mine, its in zip(policy.parameters(), other.parameters(), strict=True):
        entry, found = stock.state[mine], resumed.optimizer.state[its]
        assert entry["square_avg"].shape == mine.shape and entry["square_avg"].any()
        assert found["square_avg"].equal(entry["square_avg"])
        assert found["step"] == entry["step"] == 1
    # As saved before a first step.
    resumed.load_state_dict(
        {**learner.state_dict(), "optimizer": {**stock.state_dict(), "state": {}}}
    )
    assert not any(entry["square_avg"].any() for entry in resumed.optimizer.state.values())


def test_a_step_takes_few_launches():
    policy, learner = make(update_every=1)
    decision = policy(observation())

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.calls += not function.is_view
            return function(*args, **(kwargs or {}))

    with Count() as backward:
        torch.autograd.grad(decision.logits.sum(), learner.updates.parameters, retain_graph=True)
    with Count() as step:
        learner.learn(decision, torch.ones(1, *GRID))
    assert step.calls - backward.calls < 100


def test_saving_does_not_share_memory_with_the_run():
    policy, learner = make(update_every=1)
    saved = learner.state_dict()
    run_frame(policy, learner, 0)
    assert saved["moving_cost"] == torch.tensor(0.3)
    assert saved["frames"] == 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_learns_on_from_the_same_state(copied):
    policy, learner = make(update_every=1)
    run_frame(policy, learner, 0)
    other_policy, other = copied((policy, learner))
    for one, its_learner in ((policy, learner), (other_policy, other)):
        for generator in one.generators(torch.device("cpu")):
            generator.manual_seed(0)
        run_frame(one, its_learner, 1)
    for x, y in zip(policy.parameters(), other_policy.parameters(), strict=True):
        assert torch.equal(x, y)
    states = [x.optimizer.state_dict()["state"] for x in (learner, other)]
    for parameter, state in states[0].items():
        assert torch.equal(state["square_avg"], states[1][parameter]["square_avg"])
    size = sum(x.numel() * x.element_size() for x in policy.parameters())
    assert len(pickle.dumps(learner)) < 4 * size


def test_learns_inside_no_grad():
    policy, learner = make(update_every=1)
    before = weights(policy)
    with torch.no_grad():
        with torch.set_grad_enabled(learner.wants_graph()):
            decision = policy(observation())
        learner.learn(decision, torch.ones(1, *GRID))
    assert not torch.equal(weights(policy), before)


def test_misuse_is_named():
    with pytest.raises(ValueError, match="AllBlocks"):
        OnlineLearner(AllBlocks(), target=0.3)
    policy, learner = make(update_every=1)
    with pytest.raises(ValueError, match="cost_form"):
        OnlineLearner(policy, target=0.3, cost_form="papers")
    with pytest.raises(ValueError, match=r"within \[0, 1\]"):
        OnlineLearner(policy, target=1.5)
    with pytest.raises(ValueError, match=r"within \[0, 1\]"):
        learner.target = -0.1
    with torch.no_grad():
        decision = policy(observation())
    with pytest.raises(RuntimeError, match="wants_graph"):
        learner.learn(decision, torch.ones(1, *GRID))


def test_learns_where_the_output_changes():
    """
    Two blocks of every frame hold new objects: their pixels change and so does the output. Two
    others change as much, in another colour, and mean nothing.
    """
    rows, columns = grid_shape = (2, 4)
    policy, learner = make(update_every=1, target=0.3)
    generator = torch.Generator().manual_seed(0)
    fractions, shares, distraction = [], [], []
    frames = 150
    for _ in range(frames):
        seen = observation(0, grid_shape)
        seen.frame = 20 * seen.frame
        seen.frame_state = seen.frame.clone()
        seen.output.zero_()
        objects, distractors = torch.randperm(8, generator=generator)[:4].chunk(2)
        for channel, blocks in ((0, objects), (2, distractors)):
            for block in blocks.tolist():
                y, x = 32 * (block // columns), 32 * (block % columns)
                seen.frame[0, channel, y + 6 : y + 26, x + 6 : x + 26] += 120
        gain = torch.zeros(rows * columns)
        gain[objects] = 0.8
        with torch.set_grad_enabled(learner.wants_graph()):
            decision = policy(seen)
        learner.learn(decision, gain.view(1, *grid_shape))
        executed = decision.active.flatten().float()
        fractions.append(executed.mean())
        shares.append(executed[objects].mean())
        distraction.append(executed[distractors].mean())
    late = slice(frames - 75, frames)
    fraction, share, wasted = (
        torch.stack(x[late]).mean() for x in (fractions, shares, distraction)
    )
    assert abs(fraction - 0.3) < 0.05
    assert share > 2 * fraction
    assert share > 1.5 * wasted


def test_the_old_name_still_learns():
    policy, learner = make()
    with pytest.warns(FutureWarning, match="OnlineLearner.learn"):
        metrics = learner.observe(policy(observation()), torch.ones(1, *GRID))
    assert learner.frames == 1 and metrics["gain"] == 1
