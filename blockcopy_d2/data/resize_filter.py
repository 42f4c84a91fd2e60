"""
The weights of Pillow's bilinear filter.

Shape shorthand: K taps of a filter.
"""

import functools

import numpy as np
import torch

__all__ = ["BITS", "taps"]

# Pillow's weights of 8-bit pictures are whole numbers of so many bits.
BITS = 22


@functools.lru_cache(maxsize=64)
def taps(before, after, device):
    """
    Computes Pillow's ``precompute_coeffs`` and ``normalize_coeffs_8bpc``, in the same order of
    sums.

    Returns:
        tuple[Tensor, Tensor]: int32 (K, after) on the device, pixels and their weights.
    """
    scale = before / after
    support = max(scale, 1.0)
    centres = (np.arange(after) + 0.5) * scale
    first = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + support + 0.5).astype(np.int64), before)
    pixels = first + np.arange(int(np.ceil(support)) * 2 + 1)[:, None]
    weights = np.maximum(1 - np.abs((pixels - centres + 0.5) * (1 / support)), 0)
    weights[pixels >= last] = 0
    weights /= functools.reduce(np.add, weights)
    weights = (weights * (1 << BITS) + 0.5).astype(np.int32)
    used = weights.any(1)
    pixels = np.minimum(pixels, before - 1).astype(np.int32)
    return tuple(torch.from_numpy(x[used]).to(device) for x in (pixels, weights))
