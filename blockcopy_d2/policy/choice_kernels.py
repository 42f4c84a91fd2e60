"""
Expected gains of blocks, and the blocks of largest gain, weighted by age, in two launches on a GPU.
Needs Triton.

Shape shorthand in this module:

    N: streams
    GH, GW: rows and columns of the block grid
    F: features of a block
"""

import torch
import triton
import triton.language as tl

from . import gain_constants
from .block_means import block_means

__all__ = ["MOST_BLOCKS", "block_features_triton", "choose_triton"]

# One program holds all blocks of a stream.
MOST_BLOCKS = 2048


@triton.jit
def _relative(value, floor, exists, blocks):
    """Logarithms of values in multiples of their mean, all equal if the mean is 0; and the mean."""
    mean = tl.sum(tl.where(exists, value, 0.0), 0) / blocks
    relative = tl.where(mean == 0, 1.0, value / tl.where(mean == 0, 1.0, mean))
    return tl.log(relative + floor), mean


@triton.jit
def _weight(network, f):
    prior_ptr, correction_ptr, _, deviations_ptr = network
    return tl.load(prior_ptr + f) + tl.load(correction_ptr + f) / tl.load(deviations_ptr + f)


@triton.jit
def _variance(value, exists, blocks):
    """Variance over the blocks."""
    mean = tl.sum(tl.where(exists, value, 0.0), 0) / blocks
    return tl.sum(tl.where(exists, (value - mean) * (value - mean), 0.0), 0) / blocks


@triton.jit
def _gain_at(gain_ptr, row, column, rows, columns, mean, exists):
    """Gains of blocks where they are known, else their mean; -inf beyond the grid."""
    inside = exists & (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    gain = tl.load(gain_ptr + row * columns + column, mask=inside, other=float("-inf"))
    return tl.where(inside & ~(gain >= 0), mean, gain)


@triton.jit
def expect_kernel(
    means_ptr,
    gain_ptr,
    age_ptr,
    region_ptr,
    network,
    target_ptr,
    logits_ptr,
    scores_ptr,
    usable_ptr,
    features_ptr,
    levels_ptr,
    rows,
    columns,
    AGE_POWER: tl.constexpr,
    LONG_WAIT: tl.constexpr,
    OVERDUE_POWER: tl.constexpr,
    VARIANCE_FLOOR: tl.constexpr,
    LEVEL_FLOOR: tl.constexpr,
    HAS_REGION: tl.constexpr,
    FEATURES: tl.constexpr,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """
    A program expects the gains of a stream's blocks, and scores them; or writes their FEATURES.
    """
    prior_ptr, _, floors_ptr, _ = network
    stream, blocks = tl.program_id(0).to(tl.int64), rows * columns
    block = tl.arange(0, BLOCK)
    exists, here = block < blocks, stream * blocks + block
    logit = tl.zeros((BLOCK,), tl.float32)
    uncorrected = tl.zeros((BLOCK,), tl.float32)
    level = 0.0
    for f in tl.static_range(F - 2):
        value = tl.load(means_ptr + (stream * (F - 2) + f) * blocks + block, mask=exists, other=0.0)
        feature, mean = _relative(value, tl.load(floors_ptr + f), exists, blocks)
        prior = tl.load(prior_ptr + f)
        level += prior * tl.log(tl.maximum(mean, LEVEL_FLOOR))
        uncorrected += prior * feature
        logit += _weight(network, f) * feature
        if FEATURES:
            tl.store(features_ptr + (stream * F + f) * blocks + block, feature, mask=exists)
    gain_ptr += stream * blocks
    gain = tl.load(gain_ptr + block, mask=exists, other=-1.0)
    known = gain >= 0
    number = tl.maximum(tl.sum(known.to(tl.int32), 0), 1)
    mean = tl.sum(tl.where(known, gain, 0.0), 0) / number
    row, column = block // columns, block % columns
    nearby = _gain_at(gain_ptr, row, column, rows, columns, mean, exists)
    own = tl.where(exists, nearby, 0.0)
    for dy in tl.static_range(-1, 2):
        for dx in tl.static_range(-1, 2):
            other = _gain_at(gain_ptr, row + dy, column + dx, rows, columns, mean, exists)
            nearby = tl.maximum(nearby, other, propagate_nan=tl.PropagateNan.ALL)
    nearby = tl.where(exists, nearby, 0.0)
    prior = tl.load(prior_ptr + F - 2)
    feature, mean = _relative(own, tl.load(floors_ptr + F - 2), exists, blocks)
    level += prior * tl.log(tl.maximum(mean, LEVEL_FLOOR))
    uncorrected += prior * feature
    logit += _weight(network, F - 2) * feature
    prior = tl.load(prior_ptr + F - 1)
    last_feature, mean = _relative(nearby, tl.load(floors_ptr + F - 1), exists, blocks)
    level += prior * tl.log(tl.maximum(mean, LEVEL_FLOOR))
    uncorrected += prior * last_feature
    logit += _weight(network, F - 1) * last_feature
    if FEATURES:
        features_ptr += stream * F * blocks + block
        tl.store(features_ptr + (F - 2) * blocks, feature, mask=exists)
        tl.store(features_ptr + (F - 1) * blocks, last_feature, mask=exists)
    else:
        # The deviation over the blocks stays as it is without the correction.
        wanted = _variance(uncorrected, exists, blocks)
        variance = tl.maximum(_variance(logit, exists, blocks), wanted / 4)
        logit *= tl.sqrt((wanted + VARIANCE_FLOOR) / (variance + VARIANCE_FLOOR))
        age = tl.load(age_ptr + here, mask=exists, other=0).to(tl.float32)
        overdue = tl.maximum((age + 1) * (tl.load(target_ptr).to(tl.float32) / LONG_WAIT), 1.0)
        score = logit + AGE_POWER * tl.log(age + 1) + OVERDUE_POWER * tl.log(overdue)
        usable = tl.sum((exists & ~(tl.abs(score) < float("inf"))).to(tl.int32), 0) == 0
        if HAS_REGION:
            score += tl.load(region_ptr + here, mask=exists, other=0.0)
        tl.store(logits_ptr + here, logit, mask=exists)
        tl.store(scores_ptr + here, score, mask=exists)
        tl.store(usable_ptr + stream, usable.to(tl.uint8))
        tl.store(levels_ptr + stream, level)


@triton.jit
def pick_kernel(
    scores_ptr,
    usable_ptr,
    target_ptr,
    index_ptr,
    active_ptr,
    account_ptr,
    next_account_ptr,
    levels_ptr,
    blocks,
    BURST: tl.constexpr,
    PRICE_RATE: tl.constexpr,
    PRICE_PULL: tl.constexpr,
    MOST_SAVED: tl.constexpr,
    SAVING_FRAMES: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
):
    """
    A program ranks BI blocks, and picks those within the budget. With a BURST above 1 the budget of
    a frame goes by its price, see ``pace`` in expected_gain.py.
    """
    stream = tl.program_id(1).to(tl.int64)
    scores_ptr += stream * blocks
    block = tl.program_id(0) * BI + tl.arange(0, BI)
    score = tl.load(scores_ptr + block, mask=block < blocks, other=float("-inf"))
    rank = tl.zeros((BI,), tl.int32)
    index = tl.load(index_ptr + stream)
    if BURST > 1:
        level = tl.load(levels_ptr + stream)
        is_new = index <= 1
        saved = tl.where(is_new, 0.0, tl.load(account_ptr + 2 * stream))
        price = tl.where(is_new, 0.0, tl.load(account_ptr + 2 * stream + 1))
        worthy = tl.zeros((BJ,), tl.int32)
    for first in range(0, blocks, BJ):
        rival = first + tl.arange(0, BJ)
        there = rival < blocks
        best = tl.load(scores_ptr + rival, mask=there, other=float("-inf"))
        before = (best[None, :] == score[:, None]) & (rival[None, :] < block[:, None])
        before = (before | (best[None, :] > score[:, None])) & there[None, :]
        rank += tl.sum(before.to(tl.int32), axis=1)
        if BURST > 1:
            worthy += (there & (best + level > price)).to(tl.int32)
    wanted = tl.load(target_ptr) * blocks
    # Rounding errors of a product such as 0.29 x 100 must not cost a block.
    count = tl.floor(wanted * (index + 1) + 1e-6) - tl.floor(wanted * index + 1e-6)
    usable = tl.load(usable_ptr + stream) != 0
    if BURST > 1:
        even, number, wanted = count, tl.sum(worthy, 0).to(tl.float32), wanted.to(tl.float32)
        reach = MOST_SAVED * blocks * tl.minimum(index, SAVING_FRAMES).to(tl.float32)
        reach = tl.maximum(reach, 0.5)
        least = tl.maximum(tl.floor(wanted / BURST), tl.ceil(wanted + saved - reach))
        most = tl.minimum(tl.ceil(wanted * BURST), tl.floor(wanted + saved + reach))
        paced = tl.minimum(tl.maximum(number, least), most)
        count = tl.where(is_new, even.to(tl.float32), paced)
        count = tl.minimum(tl.maximum(count, 0.0), blocks)
        after = saved + wanted - count
        next_price = price + PRICE_RATE * tl.log((number + 1) / (wanted + 1))
        next_price -= PRICE_PULL * after / blocks
        # The program that holds the last block of a new stream's first frame knows the price.
        last = tl.maximum(even.to(tl.int32) - 1, 0)
        is_last = (rank == last) & (block < blocks)
        worth = score + level
        first_price = tl.sum(tl.where(is_last & (tl.abs(worth) < float("inf")), worth, 0.0), 0)
        finite = tl.sum((is_last & (tl.abs(worth) < float("inf"))).to(tl.int32), 0) > 0
        first_price = tl.where(finite, first_price, level)
        writes = tl.where(is_new, tl.sum(is_last.to(tl.int32), 0) > 0, tl.program_id(0) == 0)
        next_account_ptr += 2 * stream
        old_saved = tl.load(account_ptr + 2 * stream)
        old_price = tl.load(account_ptr + 2 * stream + 1)
        tl.store(next_account_ptr, tl.where(usable, after, old_saved), mask=writes)
        next_price = tl.where(is_new, first_price, next_price)
        next_price = tl.where(usable, next_price, old_price)
        tl.store(next_account_ptr + 1, next_price, mask=writes)
    picked = (rank < count.to(tl.int32)) | ~usable
    tl.store(active_ptr + stream * blocks + block, picked.to(tl.uint8), mask=block < blocks)


def choose_triton(observation, network, target, burst=1.0):
    """:func:`blockcopy_d2.policy.expected_gain.choose_blocks` by Triton."""
    seen, device = observation, observation.frame.device
    streams, rows, columns = seen.gain.shape
    index = seen.frame_numbers()
    logits, scores = torch.empty(2, *seen.gain.shape, device=device)
    active = torch.empty(seen.gain.shape, dtype=torch.bool, device=device)
    usable = torch.empty(streams, dtype=torch.uint8, device=device)
    levels = torch.empty(streams, device=device)
    account = levels if burst == 1 else seen.account.contiguous()
    next_account = torch.empty_like(account)
    weights = (network.prior, network.correction, network.floors, network.deviations)
    _expect(seen, network.pixel_scale, weights, target, (logits, scores, usable, levels))
    tensors = (scores, usable, target, index.contiguous(), active.view(torch.uint8))
    tensors += (account, next_account, levels)
    blocks = rows * columns
    names = ("PRICE_RATE", "PRICE_PULL", "MOST_SAVED", "SAVING_FRAMES")
    constants = {name: getattr(gain_constants, name) for name in names}
    constants |= {"BURST": burst, "BI": 32, "BJ": 128, "num_warps": 4}
    pick_kernel[triton.cdiv(blocks, 32), streams](*tensors, blocks, **constants)
    return logits, active, None if burst == 1 else next_account


def block_features_triton(observation, pixel_scale, floors):
    """:func:`blockcopy_d2.policy.block_features.block_features` by Triton."""
    streams, rows, columns = observation.gain.shape
    features = torch.empty(streams, len(floors), rows, columns, device=floors.device)
    _expect(observation, pixel_scale, (floors,) * 4, floors, features=features)
    return features


def _expect(seen, pixel_scale, weights, target, outputs=None, features=None):
    streams, rows, columns = seen.gain.shape
    maps = (seen.frame, seen.frame_state, seen.output)
    means, gain = block_means(*maps, pixel_scale, (rows, columns)), seen.gain.contiguous()
    # Features need neither ages nor regions.
    age = gain if seen.age is None else seen.age.contiguous()
    region = gain if seen.region is None else seen.region.contiguous()
    names = ("AGE_POWER", "LONG_WAIT", "OVERDUE_POWER", "VARIANCE_FLOOR", "LEVEL_FLOOR")
    constants = {name: getattr(gain_constants, name) for name in names}
    constants |= {"HAS_REGION": seen.region is not None, "FEATURES": features is not None}
    constants |= {"F": means.shape[1] + 2, "BLOCK": triton.next_power_of_2(max(rows * columns, 16))}
    inputs = (means, gain, age, region, weights, target)
    if outputs is None:
        outputs = (gain, gain, gain, features, gain)
    else:
        *outputs, levels = outputs
        outputs = (*outputs, gain, levels)
    expect_kernel[(streams,)](*inputs, *outputs, rows, columns, **constants, num_warps=4)
