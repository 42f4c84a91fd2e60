"""
The kernel of :mod:`.copying`. Needs Triton.

Shape shorthand: N streams.
"""

import itertools

import torch
import triton
import triton.language as tl

__all__ = ["as_words", "copy_all_triton"]

# Words that a program copies.
_WORDS = 2048


@triton.jit
def copy_all_kernel(
    targets,
    sources,
    sizes,
    firsts,
    present_ptr,
    HAS_PRESENT: tl.constexpr,
    NUMBER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program copies BLOCK words of one of the tensors of one stream."""
    program, stream = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if HAS_PRESENT:
        if tl.load(present_ptr + stream) == 0:
            return
    for i in tl.static_range(NUMBER):
        if (program >= firsts[i]) & (program < firsts[i + 1]):
            word = (program - firsts[i]) * BLOCK + tl.arange(0, BLOCK)
            exists, place = word < sizes[i], stream * sizes[i] + word
            tl.store(targets[i] + place, tl.load(sources[i] + place, mask=exists), mask=exists)


def as_words(target, source, present=None):
    """
    Returns:
        tuple[Tensor, Tensor] or None: both as words of four bytes, or of one where they are not
        multiples of that; None if the kernel cannot copy them.
    """
    alike = target.dtype == source.dtype and target.shape == source.shape
    if not (alike and target.is_contiguous() and source.is_contiguous()):
        return None
    size = target.nbytes if present is None else target.nbytes // max(len(target), 1)
    wide = not (size | target.data_ptr() | source.data_ptr()) % 4
    dtype = torch.int32 if wide else torch.uint8
    return target.view(-1).view(dtype), source.view(-1).view(dtype)


def copy_all_triton(targets, sources, present=None):
    """Runs :func:`.copying.copy_all` on a GPU."""
    streams = 1 if present is None else len(present)
    pairs = [as_words(*pair, present) for pair in zip(targets, sources, strict=True)]
    pairs = [(to, of) for to, of in pairs if to.numel() and to.data_ptr() != of.data_ptr()]
    if not pairs:
        return
    sizes = [to.numel() // streams for to, _ in pairs]
    firsts = tuple(itertools.accumulate((triton.cdiv(x, _WORDS) for x in sizes), initial=0))
    targets, sources = map(tuple, zip(*pairs))
    flags = targets[0] if present is None else present.view(torch.uint8)
    constants = {"HAS_PRESENT": present is not None, "NUMBER": len(pairs), "BLOCK": _WORDS}
    launch = copy_all_kernel[(firsts[-1], streams)]
    launch(targets, sources, tuple(sizes), firsts, flags, **constants, num_warps=4)
