"""Compiles the kernels of pictures: run by test_resize_kernel.py in a process of its own, that does
not interpret."""

import sys

import torch

from blockcopy_d2.data.resize_filter import taps
from blockcopy_d2.data.triton_resize import resample_triton
from tests.kernels.compiling import compiling, report

if __name__ == "__main__":
    with compiling(int(sys.argv[1])) as compiled:
        picture = torch.zeros(96, 160, 3, dtype=torch.uint8).permute(2, 0, 1)
        for dim, extent in ((2, 111), (1, 64)):
            resample_triton(picture, *taps(picture.shape[dim], extent, picture.device), dim)
    report(compiled)
