"""Compiles the launches of block matching, without a GPU: to run in a process that does not
interpret."""

import sys
from unittest import mock

import torch

from blockcopy_d2.motion import (
    BlockMatching,
    MotionFeatures,
    triton_field,
    triton_pyramid,
    triton_search,
)
from tests.kernels.compiling import compiling, gpu, report


def main(capability, *cell_sizes):
    """Reports what was compiled for frames of 1024 x 2048."""
    device = gpu(capability)
    size = (1024, 2048)
    features = MotionFeatures.empty(size)
    sizes = torch.tensor([size], dtype=torch.int32)
    with (
        mock.patch.object(triton_field, "device_of", lambda _: device),
        mock.patch.object(triton_pyramid, "device_of", lambda _: device),
        mock.patch.object(triton_search, "device_of", lambda _: device),
        compiling(capability) as compiled,
    ):
        for dtype in (torch.uint8, torch.float32, torch.float16):
            images = torch.zeros(1, 3, *size, dtype=dtype)
            triton_pyramid.pyramid_launch(images, None, features.levels)
            triton_pyramid.pyramid_launch(images, sizes, features.levels)
        for cell_size in cell_sizes:
            *vectors, costs = BlockMatching(cell_size=cell_size).workspace(features)
            out = torch.zeros(costs.shape)
            levels = features.levels
            triton_search.search_launch(levels, levels, cell_size // 2, vectors)
            finest = (levels[0], levels[0], cell_size // 2, vectors[0])
            triton_field.field_launch(*finest, costs, out)
    report(compiled)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
