"""Compiles the launches of the policy network, without a GPU: to run in a process that does not
interpret."""

import sys

import torch

from blockcopy_d2.policy import Observation, PolicyNetwork
from blockcopy_d2.policy.fused import FusedNetwork, draw
from tests.kernels.compiling import compiling, gpu, report


@torch.no_grad()
def main(capability):
    """Reports what was compiled for a frame of 1024 x 2048."""
    device = gpu(capability)
    size = (256, 512)
    maps = [torch.zeros(1, channels, *size) for channels in (3, 3, 8)]
    seen = Observation(*maps, grid=torch.zeros(1, 1, 8, 16), frame_index=1)
    with compiling(capability) as compiled:
        logits = FusedNetwork(PolicyNetwork(num_classes=8), device=device)(seen)
        draw(logits, torch.zeros_like(logits))
    report(compiled)


if __name__ == "__main__":
    main(int(sys.argv[1]))
