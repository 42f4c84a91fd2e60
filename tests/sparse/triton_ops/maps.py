"""
Feature maps and lists of blocks to launch kernels on: on the GPU if there is one, else interpreted.
Maps are NaN before, where nothing may be read or written they stay NaN.
"""

import torch

from blockcopy_d2.kernels.device import Device
from blockcopy_d2.sparse import BlockGrid
from blockcopy_d2.sparse.state import FeatureMap
from blockcopy_d2.sparse.triton_ops.compact import allocate_list, compact
from blockcopy_d2.sparse.triton_ops.geometry import Tiling

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GPU = Device(DEVICE)


def feature_map(tensor, dtype=torch.float32):
    batch, channels, *size = tensor.shape
    result = FeatureMap(batch=batch, channels=channels, size=size, dtype=dtype, device=DEVICE)
    result.pixels.copy_(tensor.permute(0, 2, 3, 1))
    return result


def blocks_of(active):
    blocks = allocate_list(active, 1)
    compact(active, 1, blocks)
    return blocks


def active_of(batch, size, tile, share=0.5):
    shape = (batch, -(-size[0] // tile), -(-size[1] // tile))
    return (torch.rand(shape) < share).to(DEVICE)


def pixels_of(active, tile, size):
    return BlockGrid(active, block_size=tile, image_size=size).at_stride(1).pixel_mask()[:, None]


def tiling_of(active, tile):
    return Tiling(tile, *active.shape[1:], active.numel())
