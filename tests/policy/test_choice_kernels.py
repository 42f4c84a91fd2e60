"""The choice of blocks by a kernel: on the GPU if there is one, else interpreted."""

import dataclasses

import pytest
import torch

pytest.importorskip("triton")

from blockcopy_d2.policy import GainNetwork, Observation  # noqa: E402
from blockcopy_d2.policy.block_features import block_features_reference  # noqa: E402
from blockcopy_d2.policy.choice_kernels import block_features_triton, choose_triton  # noqa: E402
from blockcopy_d2.policy.expected_gain import choose_blocks_reference  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIDE = 8


def observation(streams, grid_shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = (SIDE * grid_shape[0], SIDE * grid_shape[1])

    def draw(*shape):
        return torch.rand(streams, *shape, generator=generator)

    return Observation(
        frame=draw(3, *size),
        frame_state=draw(3, *size),
        output=draw(2, *size),
        grid=torch.zeros(streams, 1, *grid_shape),
        frame_index=torch.arange(3, 3 + streams),
        age=(9 * draw(*grid_shape)).int(),
        gain=draw(*grid_shape) - 0.3,
        region=torch.zeros(streams, *grid_shape),
        account=torch.zeros(streams, 2),
    )


def both(seen, target=0.3, seed=0):
    want, found = both_with_accounts(seen, target, seed)
    return want[:2], found[:2]


def both_with_accounts(seen, target=0.3, seed=0, burst=1.0):
    network = GainNetwork(pixel_std=(57.0, 58.0, 59.0))
    network.correction.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(seed))
    target = torch.tensor(target, dtype=torch.float64)
    with torch.no_grad():
        want = choose_blocks_reference(seen, network, target, burst)
        values = {k: v.to(DEVICE) for k, v in vars(seen).items() if isinstance(v, torch.Tensor)}
        moved = dataclasses.replace(seen, **values)
        found = choose_triton(moved, network.to(DEVICE), target.to(DEVICE), burst)
    return want, [x if x is None else x.cpu() for x in found]


@pytest.mark.parametrize("target", [0.0, 0.15, 0.5, 1.0])
@pytest.mark.parametrize("streams, grid_shape", [(1, (1, 1)), (2, (3, 5)), (1, (8, 16))])
def test_the_choice_is_that_of_the_reference(streams, grid_shape, target):
    (logits, active), (found, chosen) = both(observation(streams, grid_shape), target)
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(chosen, active)
    assert active.float().mean().item() == pytest.approx(target, abs=1)


@pytest.mark.parametrize("name", ["gain", "output", "frame_state"])
def test_nothing_known_and_nothing_different(name):
    seen = observation(1, (4, 6))
    getattr(seen, name).fill_(-1) if name == "gain" else getattr(seen, name).zero_()
    if name == "frame_state":
        seen.frame.zero_()
    (logits, active), (found, chosen) = both(seen)
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(chosen, active)


@pytest.mark.parametrize("streams, grid_shape", [(1, (1, 1)), (3, (3, 5)), (2, (8, 16))])
@pytest.mark.parametrize("first", [1, 9])
def test_the_pace_is_that_of_the_reference(streams, grid_shape, first):
    """Over frames of which some change much and some little, each from the account of the last."""
    account = torch.zeros(streams, 2)
    for index in range(first, first + 6):
        seen = observation(streams, grid_shape, seed=index)
        seen.frame_state = seen.frame + (seen.frame_state - seen.frame) * (1, 1, 9, 0.1)[index % 4]
        if index % 3 == 0:
            seen.region[0, 0, 0], seen.region[-1, -1, -1] = torch.inf, -torch.inf
        seen = dataclasses.replace(
            seen, account=account, frame_index=torch.full((streams,), index, dtype=torch.int64)
        )
        want, found = both_with_accounts(seen, 0.3, burst=2.0)
        assert torch.equal(found[1], want[1])
        torch.testing.assert_close(found[2], want[2], rtol=1e-4, atol=1e-4)
        account = want[2]
    assert account.isfinite().all() and account[:, 1].all()


def test_equal_scores_keep_their_order():
    seen = observation(1, (4, 6))
    for part in (seen.frame, seen.frame_state, seen.output, seen.age, seen.gain):
        part.zero_()
    (_, active), (_, chosen) = both(seen)
    assert torch.equal(chosen, active) and chosen.flatten().sum() == chosen.flatten()[:8].sum() > 6


def test_regions_come_first_and_last():
    seen = observation(2, (4, 6))
    seen.region[0, 1, :3], seen.region[1, :, 2:] = torch.inf, -torch.inf
    (_, active), (_, chosen) = both(seen)
    assert torch.equal(chosen, active) and chosen[0, 1, :3].all() and not chosen[1, :, 2:].any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_stream_without_numbers_executes_all(bad):
    seen = observation(2, (4, 6))
    seen.output[1, 0, 3, 3] = bad
    (_, active), (_, chosen) = both(seen)
    assert torch.equal(chosen, active) and chosen[1].all() and not chosen[0].all()


@pytest.mark.parametrize("streams, grid_shape", [(1, (1, 1)), (2, (3, 5))])
def test_features_are_those_of_the_reference(streams, grid_shape):
    seen = dataclasses.replace(observation(streams, grid_shape), age=None, region=None)
    network = GainNetwork(pixel_std=(57.0, 58.0, 59.0))
    want = block_features_reference(seen, network.pixel_scale, network.floors)
    values = {k: v.to(DEVICE) for k, v in vars(seen).items() if isinstance(v, torch.Tensor)}
    constants = network.pixel_scale.to(DEVICE), network.floors.to(DEVICE)
    found = block_features_triton(dataclasses.replace(seen, **values), *constants)
    torch.testing.assert_close(found.cpu(), want, rtol=1e-4, atol=1e-4)
