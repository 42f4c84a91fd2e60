"""
Pillow's bilinear resizing, which Detectron2 uses, bit for bit on any device.

Shape shorthand: H x W pixels of a picture, h x w pixels of the resized one, K taps of a filter.
"""

import functools

import numpy as np
import torch
from detectron2.data import transforms as T
from PIL import Image

from blockcopy_d2.kernels import triton_runs_on
from blockcopy_d2.kernels.device import on_device

from .resize_filter import BITS, taps

__all__ = ["only_resize", "resize_picture", "resize_transforms"]


def only_resize(augmentations):
    """
    Args:
        augmentations (sequence[Augmentation]):

    Returns:
        bool: whether they amount to :func:`resize_picture` for any content.
    """
    return all(
        type(augmentation) in (T.ResizeShortestEdge, T.Resize)
        and augmentation.interp == Image.BILINEAR
        for augmentation in augmentations
    )


def resize_transforms(augmentations, size):
    """
    Args:
        augmentations (sequence[Augmentation]): augmentations for which :func:`only_resize` is true.
        size (tuple[int, int]): H, W.

    Returns:
        TransformList: the transforms that the augmentations choose for a picture of that size.
    """
    transforms = []
    for augmentation in augmentations:
        # Only its shape is used, so it takes no memory.
        picture = np.broadcast_to(np.uint8(0), (*size, 3))
        transforms.append(augmentation.get_transform(picture))
        if isinstance(transforms[-1], T.ResizeTransform):
            size = transforms[-1].new_h, transforms[-1].new_w
    return T.TransformList(transforms)


def resize_picture(picture, size):
    """
    Resizes as ``PIL.Image.resize`` with its bilinear filter does: along rows and along columns,
    each rounded to whole grey levels.

    Args:
        picture (Tensor): uint8 (C, H, W), of any strides.
        size (tuple[int, int]): h, w.

    Returns:
        Tensor: uint8 (C, h, w).
    """
    size = tuple(size)
    for dim in (2, 1) if _rows_first(tuple(picture.shape[1:]), size) else (1, 2):
        if picture.shape[dim] != size[dim - 1]:
            picture = resample(picture, size[dim - 1], dim)
    return picture


@functools.lru_cache(maxsize=64)
def _rows_first(before, after):
    """
    Returns whether Pillow resizes along rows first. From version 13 on it may begin with the
    columns of pictures that become lower, by rules of its own, so it is tried once per size.
    """
    if after[0] >= before[0] or after[1] == before[1]:
        return True
    picture = np.random.default_rng(0).integers(0, 256, before, dtype=np.uint8)
    resized = Image.fromarray(picture).resize(after[::-1], Image.BILINEAR)
    found, cpu = torch.from_numpy(picture)[None], torch.device("cpu")
    for dim in (1, 2):
        filter_ = taps(before[dim - 1], after[dim - 1], cpu)
        found = resample_reference(found, *filter_, dim)
    return not np.array_equal(found[0].numpy(), resized)


def resample(picture, extent, dim):
    """
    Args:
        picture (Tensor): uint8 (C, H, W), of any strides.
        extent (int): extent of the dimension ``dim``, h or w.
        dim (int): 1 or 2.

    Returns:
        Tensor: uint8, resized along that dimension.
    """
    index, weights = taps(picture.shape[dim], extent, picture.device)
    if triton_runs_on(picture.device):
        from .triton_resize import resample_triton

        with on_device(picture.device):
            return resample_triton(picture, index, weights, dim)
    return resample_reference(picture, index, weights, dim)


def resample_reference(picture, index, weights, dim):
    """:func:`resample` with the pixels and weights (K, extent) of the filter."""
    shape = [1] * picture.dim()
    shape[dim] = index.shape[1]
    total = 1 << (BITS - 1)
    for places, weight in zip(index, weights):
        total = picture.index_select(dim, places) * weight.view(shape) + total
    return (total >> BITS).byte()
