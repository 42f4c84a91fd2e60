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

from .block_features import block_means

__all__ = ["MOST_BLOCKS", "block_features_triton", "choose_triton"]

# One program holds all blocks of a stream.
MOST_BLOCKS = 2048


@triton.jit
def _relative(value, floor, exists, blocks):
    """Logarithms of values in multiples of their mean; all are equal if the mean is 0."""
    mean = tl.sum(tl.where(exists, value, 0.0), 0) / blocks
    relative = tl.where(mean == 0, 1.0, value / tl.where(mean == 0, 1.0, mean))
    return tl.log(relative + floor)


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
    rows,
    columns,
    AGE_POWER: tl.constexpr,
    LONG_WAIT: tl.constexpr,
    OVERDUE_POWER: tl.constexpr,
    VARIANCE_FLOOR: tl.constexpr,
    HAS_REGION: tl.constexpr,
    FEATURES: tl.constexpr,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """
    A program expects the gains of a stream's blocks, and scores them; or writes their FEATURES.
    """
    prior_ptr, correction_ptr, floors_ptr = network
    stream, blocks = tl.program_id(0).to(tl.int64), rows * columns
    block = tl.arange(0, BLOCK)
    exists, here = block < blocks, stream * blocks + block
    logit = tl.zeros((BLOCK,), tl.float32)
    uncorrected = tl.zeros((BLOCK,), tl.float32)
    for f in tl.static_range(F - 2):
        value = tl.load(means_ptr + (stream * (F - 2) + f) * blocks + block, mask=exists, other=0.0)
        feature = _relative(value, tl.load(floors_ptr + f), exists, blocks)
        prior = tl.load(prior_ptr + f)
        uncorrected += prior * feature
        logit += (prior + tl.load(correction_ptr + f)) * feature
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
    feature = _relative(own, tl.load(floors_ptr + F - 2), exists, blocks)
    uncorrected += prior * feature
    logit += (prior + tl.load(correction_ptr + F - 2)) * feature
    prior = tl.load(prior_ptr + F - 1)
    last_feature = _relative(nearby, tl.load(floors_ptr + F - 1), exists, blocks)
    uncorrected += prior * last_feature
    logit += (prior + tl.load(correction_ptr + F - 1)) * last_feature
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


@triton.jit
def pick_kernel(
    scores_ptr,
    usable_ptr,
    target_ptr,
    index_ptr,
    active_ptr,
    blocks,
    BI: tl.constexpr,
    BJ: tl.constexpr,
):
    """A program ranks BI blocks, and picks those within the budget."""
    stream = tl.program_id(1).to(tl.int64)
    scores_ptr += stream * blocks
    block = tl.program_id(0) * BI + tl.arange(0, BI)
    score = tl.load(scores_ptr + block, mask=block < blocks, other=float("-inf"))
    rank = tl.zeros((BI,), tl.int32)
    for first in range(0, blocks, BJ):
        rival = first + tl.arange(0, BJ)
        there = rival < blocks
        best = tl.load(scores_ptr + rival, mask=there, other=float("-inf"))
        before = (best[None, :] == score[:, None]) & (rival[None, :] < block[:, None])
        before = (before | (best[None, :] > score[:, None])) & there[None, :]
        rank += tl.sum(before.to(tl.int32), axis=1)
    wanted = tl.load(target_ptr) * blocks
    index = tl.load(index_ptr + stream)
    # Rounding errors of a product such as 0.29 x 100 must not cost a block.
    count = tl.floor(wanted * (index + 1) + 1e-6) - tl.floor(wanted * index + 1e-6)
    picked = (rank < count.to(tl.int32)) | (tl.load(usable_ptr + stream) == 0)
    tl.store(active_ptr + stream * blocks + block, picked.to(tl.uint8), mask=block < blocks)


def choose_triton(observation, network, target):
    """:func:`blockcopy_d2.policy.expected_gain.choose_blocks` by Triton."""
    seen, device = observation, observation.frame.device
    streams, rows, columns = seen.gain.shape
    index = torch.as_tensor(seen.frame_index, device=device).view(-1).expand(streams)
    logits, scores = torch.empty(2, *seen.gain.shape, device=device)
    active = torch.empty(seen.gain.shape, dtype=torch.bool, device=device)
    usable = torch.empty(streams, dtype=torch.uint8, device=device)
    weights = (network.prior, network.correction, network.floors)
    _expect(seen, network.pixel_scale, weights, target, (logits, scores, usable))
    tensors = (scores, usable, target, index.contiguous(), active.view(torch.uint8))
    blocks = rows * columns
    pick_kernel[triton.cdiv(blocks, 32), streams](*tensors, blocks, BI=32, BJ=128, num_warps=4)
    return logits, active


def block_features_triton(observation, pixel_scale, floors):
    """:func:`blockcopy_d2.policy.block_features.block_features` by Triton."""
    streams, rows, columns = observation.gain.shape
    features = torch.empty(streams, len(floors), rows, columns, device=floors.device)
    _expect(observation, pixel_scale, (floors,) * 3, floors, features=features)
    return features


def _expect(seen, pixel_scale, weights, target, outputs=None, features=None):
    from . import expected_gain

    streams, rows, columns = seen.gain.shape
    maps = (seen.frame, seen.frame_state, seen.output)
    means, gain = block_means(*maps, pixel_scale, (rows, columns)), seen.gain.contiguous()
    # Features need neither ages nor regions.
    age = gain if seen.age is None else seen.age.contiguous()
    region = gain if seen.region is None else seen.region.contiguous()
    names = ("AGE_POWER", "LONG_WAIT", "OVERDUE_POWER", "VARIANCE_FLOOR")
    constants = {name: getattr(expected_gain, name) for name in names}
    constants |= {"HAS_REGION": seen.region is not None, "FEATURES": features is not None}
    constants |= {"F": means.shape[1] + 2, "BLOCK": triton.next_power_of_2(max(rows * columns, 16))}
    inputs = (means, gain, age, region, weights, target)
    outputs = (gain, gain, gain, features) if outputs is None else (*outputs, gain)
    expect_kernel[(streams,)](*inputs, *outputs, rows, columns, **constants, num_warps=4)
