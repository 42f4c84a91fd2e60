"""Compiles the means of blocks and the overlap of masks without a GPU: to run in a process that
does not interpret."""

import sys

import torch

from blockcopy_d2.policy.block_kernels import block_means_triton
from blockcopy_d2.policy.overlap_kernels import common_pixels_triton
from tests.kernels.compiling import compiling, report


def main(capability):
    """Reports what was compiled for a frame of 1024 x 2048."""
    maps = [torch.zeros(1, channels, 256, 512) for channels in (3, 3, 8)]
    with compiling(capability) as compiled:
        block_means_triton(*maps, torch.ones(3), (8, 16))
        common_pixels_triton(*torch.zeros(2, 1, 100, 256 * 512, dtype=torch.bool))
    report(compiled)


if __name__ == "__main__":
    main(int(sys.argv[1]))
