"""
Counts the pixels that masks have in common, on a GPU. Needs Triton.

Shape shorthand in this module:

    N: streams
    n, m: masks of a stream on one side and on the other
    p: pixels of a mask
    S: parts of the pixels, each counted by another program
"""

import torch
import triton
import triton.language as tl

from blockcopy_d2.kernels.device import device_of

__all__ = ["common_pixels_triton"]

# Masks of a side, and pixels, that a program multiplies at a time.
_MASKS, _PIXELS = 128, 128


# do_not_specialize: the number of masks must not make a new variant of the kernel.
@triton.jit(do_not_specialize=["n", "m"])
def common_pixels_kernel(
    current_ptr,
    previous_ptr,
    out_ptr,
    n,
    m,
    pixels,
    pixels_per_part,
    BN: tl.constexpr,
    BP: tl.constexpr,
):
    """
    out[stream, part] = pixels in common of BN x BN pairs of masks, in one part of the pixels.

    Reads each mask once per BN masks of the other side, a byte per pixel: 100 + 100 masks of
    256x512 are 26 MB, 6 us of an H200's bandwidth. Products have half precision, in which 0 and 1
    are exact, and sums have single precision, exact up to 2^24 pixels.
    """
    part, stream = tl.program_id(1), tl.program_id(2).to(tl.int64)
    tiles = tl.cdiv(m, BN)
    row = tl.program_id(0) // tiles * BN + tl.arange(0, BN)
    column = tl.program_id(0) % tiles * BN + tl.arange(0, BN)
    current_ptr += (stream * n + row)[:, None] * pixels
    previous_ptr += (stream * m + column)[:, None] * pixels
    first = part * pixels_per_part
    end = tl.minimum(first + pixels_per_part, pixels)
    common = tl.zeros((BN, BN), tl.float32)
    for start in range(first, end, BP):
        pixel = (start + tl.arange(0, BP))[None, :]
        exists = pixel < end
        left = tl.load(current_ptr + pixel, mask=exists & (row < n)[:, None], other=0)
        right = tl.load(previous_ptr + pixel, mask=exists & (column < m)[:, None], other=0)
        common = tl.dot(left.to(tl.float16), tl.trans(right.to(tl.float16)), common)
    out = out_ptr + ((stream * tl.num_programs(1) + part) * n + row)[:, None] * m + column[None, :]
    tl.store(out, common, mask=(row < n)[:, None] & (column < m)[None, :])


def common_pixels_triton(current, previous):
    """
    Args:
        current, previous (Tensor): bool (n, p) and (m, p), or (N, n, p) and (N, m, p).

    Returns:
        Tensor: float32 (n, m), or (N, n, m).
    """
    *streams, n, pixels = current.shape
    m, device = previous.shape[-2], current.device
    if not n or not m or not pixels:
        return torch.zeros(*streams, n, m, device=device)
    tiles, number = triton.cdiv(n, _MASKS) * triton.cdiv(m, _MASKS), streams[0] if streams else 1
    # Two programs for every multiprocessor.
    parts = max(2 * device_of(device).num_sms // (tiles * number), 1)
    pixels_per_part = triton.cdiv(triton.cdiv(pixels, parts), _PIXELS) * _PIXELS
    parts = triton.cdiv(pixels, pixels_per_part)
    out = torch.empty(number, parts, n, m, device=device)
    masks = (x.contiguous().view(torch.uint8) for x in (current, previous))
    launch = common_pixels_kernel[(tiles, parts, number)]
    launch(*masks, out, n, m, pixels, pixels_per_part, BN=_MASKS, BP=_PIXELS, num_warps=8)
    return out.sum(dim=1).view(*streams, n, m)
