"""Compiles the copying of many tensors without a GPU: to run in a process that does not
interpret."""

import sys

import torch

from blockcopy_d2.kernels.triton_copying import copy_all_triton
from tests.kernels.compiling import compiling, report


def main(capability):
    """Reports what was compiled for tensors of a stream, and of several."""
    with compiling(capability) as compiled:
        for present in (None, torch.ones(2, dtype=torch.bool)):
            both = []
            for _ in range(2):
                masks, flags = torch.zeros(2, 9, 64, dtype=torch.bool), torch.zeros(2).bool()
                both.append([torch.zeros(2, 3, 64, 64), masks, flags, torch.zeros(2).long()])
            copy_all_triton(*both, present)
    report(compiled)


if __name__ == "__main__":
    main(int(sys.argv[1]))
