"""
Masks in COCO's run lengths, ``{"size": [H, W], "counts": str}``, which go down the columns.

``pycocotools.mask.encode`` wants whole masks turned by a quarter on the host, which takes ten times
as long as the code here: only the part of a mask that holds its object is turned.

Shape shorthand in this module:

    N: masks
    H, W: rows and columns of a mask in pixels
"""

import numpy as np
import torch
from pycocotools import mask as mask_util

__all__ = ["encode_labels", "encode_masks"]


def encode_masks(masks):
    """
    Args:
        masks (Tensor): bool (N, H, W), on any device.

    Returns:
        list[dict]: run lengths of each.
    """
    if not masks.numel():
        return [_compress(np.empty((0, 2), dtype=int), masks.shape[1:]) for _ in masks]
    # Reductions of bool are slow on CPUs.
    pixels = masks.view(torch.uint8)
    rows, columns = pixels.amax(dim=2).cpu().numpy(), pixels.amax(dim=1).cpu().numpy()
    return [_encode(*parts) for parts in zip(pixels, rows, columns, strict=True)]


def encode_labels(labels):
    """
    Args:
        labels (Tensor): int (H, W), the label of each pixel, on any device.

    Returns:
        dict[int, dict]: run lengths of the mask of each label that there is.
    """
    size = tuple(labels.shape)
    flat = labels.t().contiguous().cpu().numpy().reshape(-1)
    runs = _runs(flat)
    owner = flat[runs[:, 0]]
    return {int(label): _compress(runs[owner == label], size) for label in np.unique(owner)}


def _encode(pixels, rows, columns):
    """dict: run lengths of a mask, uint8 (H, W), with a pixel in these rows and columns."""
    size = tuple(pixels.shape)
    (rows,), (columns,) = rows.nonzero(), columns.nonzero()
    if not len(rows):
        return _compress(np.empty((0, 2), dtype=int), size)
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    turned = np.zeros((right - left, size[0]), dtype=np.uint8)
    turned[:, top:bottom] = pixels[top:bottom, left:right].t().contiguous().cpu().numpy()
    flat = turned.reshape(-1)
    runs = _runs(flat)
    return _compress(runs[flat[runs[:, 0]] > 0] + left * size[0], size)


def _runs(flat):
    """ndarray: int (runs, 2), start and end of runs of equal values, one behind the other."""
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    return np.stack([np.append(0, edges), np.append(edges, len(flat))], axis=1)


def _compress(runs, size):
    """dict: of the runs of a mask, start and end of each."""
    height, width = size
    counts = np.diff(np.concatenate([[0], runs.reshape(-1), [height * width]]))
    if len(runs) and not counts[-1]:
        counts = counts[:-1]
    found = mask_util.frPyObjects({"size": [height, width], "counts": counts.tolist()}, *size)
    return {"size": [height, width], "counts": found["counts"].decode("ascii")}
