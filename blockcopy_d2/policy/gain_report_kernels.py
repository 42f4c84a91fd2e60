"""
The report of a :class:`.GainLearner` on a frame, and the gradient of its loss, in two launches on a
GPU. Needs Triton.

Shape shorthand: N streams, GH x GW blocks.
"""

import torch
import triton
import triton.language as tl

__all__ = ["REPORTED", "report_triton"]

# In the order of the kernel's outputs.
REPORTED = ("gain", "entropy", "cost", "loss", "moving_cost")


@triton.jit
def share_kernel(
    logits_ptr,
    gain_ptr,
    executed_ptr,
    evidence_ptr,
    parts_ptr,
    gradient_ptr,
    blocks,
    HAS_EVIDENCE: tl.constexpr,
    TINY: tl.constexpr,
    LEAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """
    A program compares the shares of the gain of a stream's executed blocks with those expected.
    """
    stream = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCK)
    exists, here = block < blocks, stream * blocks + block
    gain = tl.load(gain_ptr + here, mask=exists, other=0.0)
    usable = tl.sum((~(tl.abs(gain) < float("inf"))).to(tl.int32), 0) == 0
    executed = tl.load(executed_ptr + here, mask=exists, other=0) != 0
    taught = executed & usable
    gain = tl.where(taught, tl.maximum(gain, 0.0), 0.0)
    lesson = gain
    if HAS_EVIDENCE:
        lesson *= tl.load(evidence_ptr + here, mask=exists, other=0.0)
    share = lesson / tl.maximum(tl.sum(lesson, 0), TINY)
    # The least finite value: with -inf a stream without an executed block would become NaN.
    logit = tl.load(logits_ptr + here, mask=exists, other=0.0)
    logit = tl.where(taught, logit, LEAST)
    logit = logit - tl.max(tl.where(exists, logit, LEAST), 0)
    power = tl.where(exists, tl.exp(logit), 0.0)
    log_expected = logit - tl.log(tl.sum(power, 0))
    expected = tl.where(exists, tl.exp(log_expected), 0.0)
    loss = -tl.sum(tl.where(share > 0, share * log_expected, 0.0), 0)
    entropy = -tl.sum(tl.where(expected > 0, expected * log_expected, 0.0), 0)
    gradient = tl.where(taught, expected * tl.sum(share, 0) - share, 0.0)
    tl.store(gradient_ptr + here, gradient, mask=exists)
    parts_ptr += stream * 5
    tl.store(parts_ptr, tl.sum(gain, 0) / blocks)
    tl.store(parts_ptr + 1, tl.where(usable, entropy, 0.0))
    tl.store(parts_ptr + 2, tl.sum(taught.to(tl.int32), 0).to(tl.float32) / blocks)
    tl.store(parts_ptr + 3, loss)
    tl.store(parts_ptr + 4, usable.to(tl.float32))


@triton.jit
def report_kernel(parts_ptr, moving_cost_ptr, out_ptr, momentum, N, BLOCK: tl.constexpr):
    """Means over the streams that can be learned from; one program."""
    stream = tl.arange(0, BLOCK)
    part = parts_ptr + stream * 5
    number = tl.sum(tl.load(part + 4, mask=stream < N, other=0.0), 0)
    for value in tl.static_range(4):
        total = tl.sum(tl.load(part + value, mask=stream < N, other=0.0), 0)
        tl.store(out_ptr + value, total / tl.maximum(number, 1.0))
    cost = tl.sum(tl.load(part + 2, mask=stream < N, other=0.0), 0)
    before = tl.load(moving_cost_ptr)
    cost = tl.where(number > 0, cost / tl.maximum(number, 1.0), before)
    after = before + (1 - momentum) * (cost - before)
    tl.store(moving_cost_ptr, after)
    tl.store(out_ptr + 4, after)
    tl.store(out_ptr + 5, number)


def report_triton(logits, gain, executed, moving_cost, momentum, evidence=None):
    """
    Args:
        logits, gain (Tensor): float32 (N, GH, GW), see :meth:`.OnlineLearner.learn`.
        executed (Tensor): bool (N, GH, GW).
        moving_cost (Tensor): float32 scalar, which moves in place.
        momentum (float): its momentum.
        evidence (Tensor or None): float32 (N, GH, GW), see :class:`.Decision`.

    Returns:
        tuple: dict[str, Tensor], float32 scalars, as :meth:`.OnlineLearner.learn` returns them;
        float32 (N, GH, GW), the gradient of the sum of the streams' losses by their logits; and a
        float32 scalar, the number of streams that can be learned from.
    """
    streams, blocks = len(gain), gain[0].numel()
    parts = torch.empty(streams, 5, device=gain.device)
    out = torch.empty(len(REPORTED) + 1, device=gain.device)
    gradient = torch.empty(gain.shape, device=gain.device)
    maps = (logits.contiguous(), gain.contiguous(), executed.contiguous().view(torch.uint8))
    maps += (maps[1] if evidence is None else evidence.contiguous(),)
    limits = torch.finfo(torch.float32)
    constants = {"HAS_EVIDENCE": evidence is not None, "TINY": limits.tiny, "LEAST": limits.min}
    constants |= {"BLOCK": triton.next_power_of_2(blocks), "num_warps": 4}
    share_kernel[(streams,)](*maps, parts, gradient, blocks, **constants)
    most = triton.next_power_of_2(streams)
    report_kernel[(1,)](parts, moving_cost, out, momentum, streams, BLOCK=most, num_warps=1)
    *values, number = out
    return dict(zip(REPORTED, values, strict=True)), gradient, number
