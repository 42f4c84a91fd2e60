import copy
import itertools

import pytest
import torch
from detectron2.config import get_cfg
from fvcore.nn import FlopCountAnalysis

from blockcopy_d2.config import add_blockcopy_config, check_blockcopy_config
from blockcopy_d2.policy import LearnedPolicy, Observation, PolicyNetwork
from blockcopy_d2.policy.learned import round_up_count


def observation(grid_shape=(2, 3), num_classes=2, streams=1, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    rows, columns = grid_shape
    size = (streams, 3, 32 * rows, 32 * columns)
    return Observation(
        frame=scale * torch.randn(size, generator=generator),
        frame_state=scale * torch.randn(size, generator=generator),
        output=torch.rand(streams, num_classes, *size[2:], generator=generator),
        grid=(torch.rand(streams, 1, rows, columns, generator=generator) > 0.5).float(),
        frame_index=1,
    )


class Stacked(torch.nn.Module):
    """The convolutions alone, for fvcore, which counts calls on tensors."""

    def __init__(self, network):
        super().__init__()
        self.backbone, self.head = network.backbone, network.head

    def forward(self, x):
        return self.head(self.backbone(x))


def gmacs(network, channels):
    """Per frame of 1024 x 2048 pixels in clips of 20, the first of which does not ask."""
    flops = FlopCountAnalysis(Stacked(network), torch.zeros(1, channels, 32, 64))
    flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return (256 * 512) / (32 * 64) * flops.by_operator()["conv"] / 1e9 * 19 / 20


def test_size_and_cost_are_the_papers():
    network = PolicyNetwork(num_classes=1)
    assert sum(p.numel() for p in network.parameters()) == 605_377
    assert round(gmacs(network, channels=8), 1) == 6.5


@pytest.mark.parametrize("num_classes", [1, 8, 19])
def test_one_logit_per_block(num_classes):
    policy = LearnedPolicy(num_classes=num_classes)
    weight = policy.network.backbone[0].weight
    assert weight.shape[1] == 7 + num_classes
    assert weight.is_contiguous(memory_format=torch.channels_last)
    decision = policy(observation((3, 5), num_classes, streams=2))
    assert decision.logits.shape == decision.active.shape == (2, 3, 5)
    assert decision.active.dtype == torch.bool


@pytest.mark.parametrize("pixels_per_block", [8, 16, 32])
def test_one_logit_per_block_of_any_resolution(pixels_per_block):
    policy = LearnedPolicy(num_classes=1, pixels_per_block=pixels_per_block)
    size = (2 * pixels_per_block, 5 * pixels_per_block)
    maps = [torch.rand(1, channels, *size) for channels in (3, 3, 1)]
    seen = Observation(*maps, grid=torch.ones(1, 1, 2, 5), frame_index=1)
    assert policy(seen).logits.shape == (1, 2, 5)


def test_a_grid_of_one_block():
    assert LearnedPolicy(num_classes=1)(observation((1, 1), 1)).logits.shape == (1, 1, 1)


def test_the_mode_changes_nothing():
    policies = [LearnedPolicy(num_classes=2)]
    policies.append(copy.deepcopy(policies[0]).eval())
    seen = observation()
    training, inference = (policy(seen) for policy in policies)
    assert torch.equal(training.logits, inference.logits)
    assert torch.equal(training.active, inference.active)


def test_the_graph_follows_grad_mode():
    policy = LearnedPolicy(num_classes=2)
    assert policy(observation()).logits.requires_grad
    with torch.no_grad():
        assert not policy(observation()).logits.requires_grad


def test_the_unit_of_pixels_does_not_matter():
    """The frames of Detectron2's two normalizations give the same logits."""
    torch.manual_seed(0)
    std = (57.0, 57.0, 58.0)
    unscaled = PolicyNetwork(num_classes=2)
    scaled = PolicyNetwork(num_classes=2, pixel_std=std)
    scaled.load_state_dict(unscaled.state_dict())
    raw = observation(scale=60.0)
    divisor = torch.tensor(std).view(1, 3, 1, 1)
    divided = Observation(
        raw.frame / divisor, raw.frame_state / divisor, raw.output, raw.grid, raw.frame_index
    )
    torch.testing.assert_close(unscaled(raw), scaled(divided))
    assert unscaled._stack(raw)[:, :6].std() < 1.5


def test_draws_follow_the_probabilities():
    logits = torch.tensor([[-30.0, -1.0, 0.0], [1.0, 30.0, 2.0]])
    policy = LearnedPolicy(num_classes=2)
    policy.network.register_forward_hook(lambda *_: logits.expand(4000, 2, 3))
    drawn = policy(observation()).active.float().mean(dim=0)
    torch.testing.assert_close(drawn, logits.sigmoid(), atol=0.03, rtol=0)


def test_draws_depend_on_the_seed_alone():
    policies = [LearnedPolicy(num_classes=2, seed=seed) for seed in (3, 3, 4)]
    for policy in policies[1:]:
        policy.load_state_dict(policies[0].state_dict())
    seen = observation((8, 8))
    torch.rand(7)
    runs = [torch.cat([policy(seen).active for _ in range(3)]) for policy in policies]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e38])
@pytest.mark.parametrize("field", ["frame", "output"])
def test_a_broken_frame_runs_all_blocks_and_leaves_nothing_behind(value, field):
    policy = LearnedPolicy(num_classes=2)
    before = policy(observation()).logits
    broken = observation(seed=1)
    getattr(broken, field)[0, 0, 5, 5] = value
    decision = policy(broken)
    if torch.isfinite(decision.logits).all():
        assert value == 1e38
    else:
        assert decision.active.all()
    assert torch.equal(policy(observation()).logits, before)


def test_autocast_leaves_the_policy_in_full_precision():
    policy = LearnedPolicy(num_classes=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert policy(observation()).logits.dtype == torch.float32


# Table 2 of the paper has 34.1 for "ResNet-20".
@pytest.mark.parametrize("depth, expected", [(8, 6.5), (20, 20.3), (32, 34.1)])
def test_deeper_networks(depth, expected):
    network = PolicyNetwork(num_classes=1, depth=depth)
    assert round(gmacs(network, 8), 1) == expected
    convolutions = [m for m in network.backbone.modules() if isinstance(m, torch.nn.Conv2d)]
    # Shortcuts are not counted; the classifier of such a ResNet is.
    assert sum(m.kernel_size == (3, 3) for m in convolutions) + 1 == depth


INPUTS = {
    "frame": lambda seen: seen.frame / 58,
    "previous_frame": lambda seen: seen.previous_frame / 58,
    "frame_state": lambda seen: seen.frame_state / 58,
    "output": lambda seen: seen.output,
    "grid": lambda seen: seen.grid.repeat_interleave(32, 2).repeat_interleave(32, 3),
}


@pytest.mark.parametrize("count", range(1, 6))
def test_the_inputs_are_those_that_are_named(count):
    for names in itertools.combinations(INPUTS, count):
        network = PolicyNetwork(num_classes=2, inputs=names[::-1])
        seen = observation(streams=2)
        seen.previous_frame = torch.randn_like(seen.frame)
        stacked = torch.cat([INPUTS[name](seen) for name in names], dim=1)
        torch.testing.assert_close(network._stack(seen), stacked)
        logits = network.head(network.backbone(stacked))[:, 0]
        torch.testing.assert_close(network(seen), logits)


def test_output_and_grid_may_be_centred():
    seen = observation()
    plain, centred = (PolicyNetwork(num_classes=2, center_inputs=x)._stack(seen) for x in (0, 1))
    assert torch.equal(centred[:, :6], plain[:, :6])
    torch.testing.assert_close(centred[:, 6:], plain[:, 6:] - 0.5)


@pytest.mark.parametrize(
    "total, steps, count, expected",
    [(128, 16, 1, 8), (128, 16, 8, 8), (128, 16, 9, 16), (128, 16, 0, 0), (128, 16, 128, 128)]
    + [(15, 4, 4, 6), (15, 4, 14, 15), (6, 16, 2, 2)],
)
def test_counts_are_rounded_up_by_other_blocks(total, steps, count, expected):
    active, chosen = torch.zeros(3, 1, total, dtype=torch.bool), set()
    for stream in active:
        stream[0, torch.randperm(total)[:count]] = True
    for _ in range(20):
        more = round_up_count(active, torch.rand(active.shape), steps)
        assert more.flatten(1).sum(1).tolist() == [expected] * 3
        assert not (active & ~more).any()
        chosen.add(tuple(more.flatten().tolist()))
    assert (len(chosen) > 10) == (1 < expected < total and expected > count)


def test_counts_of_a_policy_are_those_of_the_authors_code():
    cfg = get_cfg()
    add_blockcopy_config(cfg)
    cfg.MODEL.BLOCKCOPY.POLICY.COUNT_STEPS = 16
    cfg.MODEL.BLOCKCOPY.POLICY.CENTER_INPUTS = True
    policy = LearnedPolicy(cfg, num_classes=2)
    assert policy.network.center_inputs and policy.capturable
    counts = [int(policy(observation((8, 8))).active.sum()) for _ in range(5)]
    assert all(count % 4 == 0 for count in counts) and len(set(counts)) > 1


def test_inputs_by_config():
    cfg = get_cfg()
    add_blockcopy_config(cfg)
    policy = cfg.MODEL.BLOCKCOPY.POLICY
    assert LearnedPolicy(cfg, num_classes=2).capturable
    policy.INPUTS, policy.DEPTH = ["grid", "previous_frame", "frame"], 20
    learned = LearnedPolicy(cfg, num_classes=2)
    assert learned.network.inputs == ("frame", "previous_frame", "grid")
    assert learned.capturable
    for key, value in (("INPUTS", []), ("INPUTS", ["frame", "flow"]), ("DEPTH", 10)):
        broken = cfg.clone()
        broken.MODEL.BLOCKCOPY.POLICY[key] = value
        with pytest.raises(ValueError, match="inputs is" if key == "INPUTS" else "depth is"):
            LearnedPolicy(broken, num_classes=2)
        with pytest.raises(ValueError, match=f"MODEL.BLOCKCOPY.POLICY.{key} is"):
            check_blockcopy_config(broken)
