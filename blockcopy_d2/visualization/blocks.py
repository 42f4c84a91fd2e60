"""
The blocks of a picture, drawn over it.

Shape shorthand: an image of H x W pixels under a grid of GH x GW blocks.
"""

import math

import numpy as np

__all__ = ["draw_region", "tint_blocks"]

# BGR
_TINT = np.array([60, 190, 255], dtype=np.float32)
_TINT_ALPHA = 0.2
_OUTLINE_ALPHA = 0.85
_SKIPPED_BRIGHTNESS = 0.82
_ALWAYS = np.array([90, 220, 60], dtype=np.uint8)
_NEVER_BRIGHTNESS = 0.6


def tint_blocks(image, active, side):
    """
    Args:
        image (ndarray): uint8, (H, W, 3), BGR.
        active (ndarray): bool, (GH, GW): blocks to tint and outline; the others are dimmed.
        side (float): side of a block in pixels of ``image``.

    Returns:
        ndarray: uint8, (H, W, 3), BGR.
    """
    tinted = _pixels(active, image.shape[:2], side)
    outline = _outline(tinted)
    alpha = (np.where(outline, _OUTLINE_ALPHA, _TINT_ALPHA) * tinted).astype(np.float32)
    keep = np.where(tinted, 1 - alpha, np.float32(_SKIPPED_BRIGHTNESS))
    return (image * keep[..., None] + _TINT * alpha[..., None]).round().astype(np.uint8)


def draw_region(image, region, side):
    """
    Args:
        image (ndarray): uint8, (H, W, 3), BGR.
        region (BlockRegion): its blocks that always run get a frame, those that never do are grey.
        side (float): side of a block in pixels of ``image``.

    Returns:
        ndarray: uint8, (H, W, 3), BGR.
    """
    always, never = (
        _pixels(np.asarray(mask.cpu()), image.shape[:2], side)
        for mask in (region.always, region.never)
    )
    grey = (image.mean(axis=2, keepdims=True) * _NEVER_BRIGHTNESS).astype(np.uint8)
    picture = np.where(never[..., None], grey, image)
    return np.where(_outline(always)[..., None], _ALWAYS, picture)


def _pixels(blocks, size, side):
    """ndarray: bool (H, W), pixels of blocks (GH, GW)."""
    rows, columns = (
        np.minimum((np.arange(length) / side).astype(int), count - 1)
        for length, count in zip(size, blocks.shape, strict=True)
    )
    return blocks[rows][:, columns]


def _outline(pixels):
    """ndarray: bool (H, W), where they meet others, or the border of the image."""
    inner = np.pad(pixels, 1)
    thickness = max(1, round(math.sqrt(pixels.size) / 700))
    for _ in range(thickness):
        inner = inner & np.pad(
            inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:], 1
        )
    return pixels & ~inner[1:-1, 1:-1]
