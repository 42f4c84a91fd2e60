"""Compiles the launches of the policy network, without a GPU: to run in a process that does not
interpret."""

import json
import sys

import torch

from blockcopy_d2.kernels.device import Device
from blockcopy_d2.policy import Observation, PolicyNetwork
from blockcopy_d2.policy.fused import FusedNetwork, draw
from tests.sparse.triton_ops.compiling import compiling


@torch.no_grad()
def main(capability):
    """Prints what was compiled for a frame of 1024 x 2048, as JSON."""
    device = Device("cpu")
    device.num_sms, device.pdl = 132, capability >= 90
    size = (256, 512)
    maps = [torch.zeros(1, channels, *size) for channels in (3, 3, 8)]
    seen = Observation(*maps, grid=torch.zeros(1, 1, 8, 16), frame_index=1)
    with compiling(capability) as compiled:
        logits = FusedNetwork(PolicyNetwork(num_classes=8), device=device)(seen)
        draw(logits, torch.zeros_like(logits))
    kernels = [
        {
            "name": kernel.metadata.name,
            "tensor_cores": "wgmma" in kernel.asm["ptx"] or "mma.sync" in kernel.asm["ptx"],
            "shared_memory": kernel.metadata.shared,
            "bytes": len(kernel.asm["cubin"]),
        }
        for kernel in compiled.values()
    ]
    print(json.dumps(kernels))


if __name__ == "__main__":
    main(int(sys.argv[1]))
