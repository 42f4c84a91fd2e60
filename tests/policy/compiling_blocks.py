"""Compiles the kernels for blocks and the overlap of masks without a GPU: to run in a process that
does not interpret."""

import sys
from unittest import mock

import torch

from blockcopy_d2.policy import DetectionMasks, GainNetwork, Observation, block_means
from blockcopy_d2.policy.choice_kernels import block_features_triton, choose_triton
from blockcopy_d2.policy.gain_kernels import mask_block_gain_triton
from blockcopy_d2.policy.gain_report_kernels import report_triton
from tests.kernels.compiling import compiling, report


@torch.no_grad()
def main(capability):
    """Reports what was compiled for frames of 8 x 16 and of 32 x 64 blocks."""
    on_gpu = mock.patch.object(block_means, "triton_runs_on", lambda device: True)
    with on_gpu, compiling(capability) as compiled:
        for rows, columns in ((8, 16), (32, 64)):
            maps = [torch.zeros(1, channels, 32 * rows, 32 * columns) for channels in (3, 3, 8)]
            blocks = torch.zeros(1, rows, columns)
            known = {"age": blocks.int(), "gain": blocks, "region": blocks}
            known["account"] = torch.zeros(1, 2)
            seen = Observation(*maps, grid=blocks[None], frame_index=1, **known)
            for burst in (1.0, 2.0):
                target = torch.zeros((), dtype=torch.float64)
                choose_triton(seen, GainNetwork(), target, burst)
        block_features_triton(seen, torch.ones(3), torch.ones(8))
        masks, scores = torch.zeros(1, 100, 256, 512, dtype=torch.bool), torch.zeros(1, 100)
        seen = DetectionMasks(masks, scores, scores.long())
        mask_block_gain_triton(seen, seen)
        gain = torch.zeros(2, 8, 16)
        for evidence in (None, gain):
            report_triton(gain, gain, gain.bool(), torch.zeros(()), 0.9, evidence)
    report(compiled)


if __name__ == "__main__":
    main(int(sys.argv[1]))
