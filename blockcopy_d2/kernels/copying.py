"""Copies many tensors in one launch."""

import torch

from .availability import triton_runs_on

__all__ = ["copy_all"]


def copy_all(targets, sources, present=None):
    """
    Overwrites tensors in place.

    Args:
        targets (sequence[Tensor]): tensors that share no memory with a source, unless a source is
            the target itself.
        sources (sequence[Tensor]): one for each, of the same shape and device.
        present (Tensor or None): bool (N,): the entries of the first dimension to overwrite, which
            all tensors then have in common; the others stay. None: all.
    """
    pairs = list(zip(targets, sources, strict=True))
    if not pairs:
        return
    if not triton_runs_on(pairs[0][0].device):
        copy_all_reference(targets, sources, present)
        return
    from .triton_copying import as_words, copy_all_triton

    plain = [pair for pair in pairs if as_words(*pair, present) is not None]
    others = [pair for pair in pairs if as_words(*pair, present) is None]
    if plain:
        copy_all_triton(*zip(*plain), present)
    if others:
        copy_all_reference(*zip(*others), present)


def copy_all_reference(targets, sources, present=None):
    """:func:`copy_all` in plain PyTorch."""
    for target, source in zip(targets, sources, strict=True):
        if present is None:
            target.copy_(source)
        else:
            flags = present.view(-1, *[1] * (target.dim() - 1))
            torch.where(flags, source, target, out=target)
