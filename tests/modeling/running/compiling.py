"""Compiles the kernel that prepares pictures as a call on a GPU would: run by test_preparation.py
in a process of its own, that does not interpret."""

import sys

import torch

from blockcopy_d2.modeling.running.triton_preparation import prepare_triton
from tests.kernels.compiling import compiling, report


def launch_all():
    mean = torch.zeros(3, 1, 1)
    for dtype in (torch.float16, torch.float32):
        images = torch.zeros(8, 3, 1024, 2048, dtype=torch.uint8)
        prepare_triton(images, mean, mean, (1024, 2048), (256, 512), 4, dtype)
        prepare_triton(images[..., :801, :1333], mean, mean, (832, 1344), (224, 352), 4, dtype)


if __name__ == "__main__":
    with compiling(int(sys.argv[1])) as compiled:
        launch_all()
    report(compiled)
