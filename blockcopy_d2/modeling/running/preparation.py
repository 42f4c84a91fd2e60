"""
Turns pixel values into the inputs of network and policy.

Shape shorthand in this module:

    N: streams of a batch
    H, W: height and width of the network's input, padding included
    h, w: policy resolution
"""

import torch

from blockcopy_d2.kernels import triton_runs_on
from blockcopy_d2.sparse import num_blocks

from .steps import at_policy_resolution, normalize

__all__ = ["prepare"]


def prepare(model, images, canvas_size, dtype):
    """
    Args:
        model (BlockCopyVideoModel):
        images (Tensor): (N, 3, height, width) on the model's device, of pixel values.
        canvas_size (tuple[int, int]): H, W.
        dtype (torch.dtype): type of the network's input.

    Returns:
        tuple[Tensor, Tensor]: (N, 3, H, W) of ``dtype``, normalized and padded; and the same at
        policy resolution, float (N, 3, h, w).
    """
    window = model.block_size // model.task.pixels_per_block
    served = images.dtype in (torch.uint8, torch.float32) and model.policy_resize == "mean"
    if triton_runs_on(images.device) and window and served:
        from .triton_preparation import prepare_triton

        grid_shape = num_blocks(model.block_size, canvas_size)
        size = tuple(model.task.pixels_per_block * blocks for blocks in grid_shape)
        mean, std = model.base.pixel_mean, model.base.pixel_std
        return prepare_triton(images, mean, std, canvas_size, size, window, dtype)
    return prepare_reference(model, images, canvas_size, dtype)


def prepare_reference(model, images, canvas_size, dtype):
    """:func:`prepare` in plain PyTorch."""
    normalized = normalize(model, images)
    return normalized.tensor.to(dtype), at_policy_resolution(model, normalized)
