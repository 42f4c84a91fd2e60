"""The kernels of :mod:`.advance`, whose shape shorthand is used here."""

import torch
import triton
import triton.language as tl

__all__ = ["advance_triton"]

_LARGEST = tl.constexpr(torch.finfo(torch.float32).max)


@triton.jit
def finite_numbers(value):
    """Like ``nan_to_num`` of float32."""
    limit = tl.where(value > 0, _LARGEST, -_LARGEST)
    limit = tl.where(value == value, limit, 0.0)
    return tl.where(tl.abs(value) < float("inf"), value, limit)


@triton.jit
def advance_kernel(
    active_ptr,
    maps,
    values,
    outputs,
    follows_nothing_ptr,
    broken_ptr,
    size,
    K,
    HAS_GAIN: tl.constexpr,
    CHANNELS: tl.constexpr,  # of a picture
    P: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """A program advances a block of P x P pixels of a stream."""
    picture_ptr, state_ptr, painted_ptr = maps
    age_ptr, gain_ptr, old_gain_ptr = values
    new_state_ptr, new_painted_ptr, new_age_ptr, new_gain_ptr = outputs
    rows, columns = size
    blocks, pixels = rows * columns, rows * columns * P * P
    stream, block = tl.program_id(1).to(tl.int64), tl.program_id(0)
    place = stream * blocks + block
    y = block // columns * P + tl.arange(0, P)[:, None]
    here = y * columns * P + block % columns * P + tl.arange(0, P)[None, :]
    active = tl.load(active_ptr + place) != 0
    source = state_ptr
    if active:
        source = picture_ptr
    for channel in tl.static_range(CHANNELS):
        pixel = (stream * CHANNELS + channel) * pixels + here
        tl.store(new_state_ptr + pixel, tl.load(source + pixel))
    broken = tl.zeros((P, P), tl.int32)
    for k in range(0, K):
        pixel = (stream * K + k) * pixels + here
        value = tl.load(painted_ptr + pixel)
        broken = broken | (~(tl.abs(value) < float("inf"))).to(tl.int32)
        tl.store(new_painted_ptr + pixel, finite_numbers(value))
    tl.store(broken_ptr + place, tl.max(tl.max(broken, 1), 0))
    tl.store(new_age_ptr + place, tl.where(active, 0, tl.load(age_ptr + place) + 1))
    gain = tl.load(old_gain_ptr + place)
    if HAS_GAIN:
        other = tl.arange(0, BLOCKS)
        gains = tl.load(gain_ptr + stream * blocks + other, mask=other < blocks, other=0.0)
        known = tl.sum((~(tl.abs(gains) < float("inf"))).to(tl.int32), 0) == 0
        known = known & (tl.load(follows_nothing_ptr + stream) == 0)
        measured = tl.where(known, tl.load(gain_ptr + place), -1.0)
        gain = tl.where(active, measured, gain)
    tl.store(new_gain_ptr + place, gain)


@triton.jit
def count_kernel(broken_ptr, finite_ptr, index_ptr, outputs, blocks, BLOCKS: tl.constexpr):
    """A program counts a frame of a stream, and says whether anything in it was not finite."""
    new_broken_ptr, new_index_ptr = outputs
    stream, block = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCKS)
    broken = tl.load(broken_ptr + stream * blocks + block, mask=block < blocks, other=0)
    broken = (tl.max(broken, 0) > 0) | (tl.load(finite_ptr + stream) == 0)
    tl.store(new_broken_ptr + stream, broken.to(tl.uint8))
    tl.store(new_index_ptr + stream, tl.load(index_ptr + stream) + 1)


def advance_triton(history, arrival, painted, active, gain=None):
    """Runs :func:`.advance.advance` on a GPU."""
    streams, rows, columns = active.shape
    maps = (arrival.picture, history.frame_state, painted.float())
    maps = tuple(x.contiguous() for x in maps)
    after = {
        "frame_state": torch.empty_like(maps[1]),
        "painted": torch.empty_like(maps[2]),
        "age": torch.empty(active.shape, dtype=torch.int32, device=active.device),
        "gain": torch.empty(active.shape, device=active.device),
    }
    broken = torch.empty(active.shape, dtype=torch.int32, device=active.device)
    values = (history.age, history.gain if gain is None else gain.float(), history.gain)
    follows_nothing = (arrival.finite if gain is None else arrival.follows_nothing).view(
        torch.uint8
    )
    constants = {"HAS_GAIN": gain is not None, "P": painted.shape[-1] // columns}
    constants["CHANNELS"] = arrival.picture.shape[1]
    blocks = triton.next_power_of_2(rows * columns)
    advance_kernel[(rows * columns, streams)](
        *(active.contiguous().view(torch.uint8), maps, tuple(x.contiguous() for x in values)),
        *(tuple(after.values()), follows_nothing, broken, (rows, columns), painted.shape[1]),
        **{**constants, "BLOCKS": blocks, "num_warps": 4},
    )
    after["broken"] = torch.empty(streams, dtype=torch.bool, device=active.device)
    after["frame_index"] = torch.empty_like(history.frame_index)
    counted = (after["broken"].view(torch.uint8), after["frame_index"])
    finite = arrival.finite.contiguous().view(torch.uint8)
    index = history.frame_index.contiguous()
    count_kernel[(streams,)](
        broken, finite, index, counted, rows * columns, BLOCKS=blocks, num_warps=4
    )
    return after
