"""Compiles the launches that move maps, without a GPU: to run in a process that does not
interpret."""

import sys

import torch

from blockcopy_d2.motion.caches import MovedMap
from blockcopy_d2.motion.move_tables import staging_bytes
from blockcopy_d2.motion.triton_moving import MoveLaunch
from blockcopy_d2.motion.triton_policy_maps import move_maps_launch, move_masks_launch
from tests.kernels.compiling import compiling, gpu, report


def main(capability):
    """Reports what was compiled for a frame of 1024 x 2048."""
    device = gpu(capability)
    field, active = torch.zeros(1, 2, 64, 128), torch.zeros(1, 8, 16, dtype=torch.bool)
    found = {}
    for dtype, precision in (
        (torch.float16, "ieee"),
        (torch.bfloat16, "ieee"),
        (torch.float32, "ieee"),
        (torch.float32, "tf32"),
    ):
        maps = [
            MovedMap(torch.zeros(size[0] * size[1], channels, dtype=dtype), size, *rest)
            for size, channels, *rest in [
                ((256, 512), 256, 256 * 512, 4, False),
                ((64, 128), 3, 64 * 128, 16, precision == "tf32"),
            ]
        ]
        staging = torch.zeros(staging_bytes(maps), dtype=torch.uint8)
        with compiling(capability) as compiled:
            MoveLaunch(
                maps, staging, cell_size=16, block_size=128, precision=precision, device=device
            )(field, active)
        found |= {(dtype, precision, key): kernel for key, kernel in compiled.items()}
    layout = {"cell_size": 16, "stride": 4.0, "device": device}
    with compiling(capability) as compiled:
        move_maps_launch(torch.zeros(1, 11, 256, 512), field, **layout)
        move_masks_launch(torch.zeros(100, 256, 512, dtype=torch.bool), field, **layout)
    report({**found, **compiled})


if __name__ == "__main__":
    main(int(sys.argv[1]))
