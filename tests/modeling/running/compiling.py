"""Compiles the kernels for pictures as a call on a GPU would: run by test_preparation.py in a
process of its own, that does not interpret."""

import sys
import types

import torch

from blockcopy_d2.modeling.running.arrival import Arrival
from blockcopy_d2.modeling.running.triton_advance import advance_triton
from blockcopy_d2.modeling.running.triton_arrival import compare_frames_triton
from blockcopy_d2.modeling.running.triton_preparation import prepare_triton
from tests.kernels.compiling import compiling, report


def launch_all():
    mean = torch.zeros(3, 1, 1)
    for dtype in (torch.float16, torch.float32):
        images = torch.zeros(8, 3, 1024, 2048, dtype=torch.uint8)
        prepare_triton(images, mean, mean, (1024, 2048), (256, 512), 4, dtype)
        prepare_triton(images[..., :801, :1333], mean, mean, (832, 1344), (224, 352), 4, dtype)
    frames, index = torch.zeros(2, 1, 3, 256, 512), torch.zeros(1, dtype=torch.int64)
    settings = {"share": 0.3, "pixels_per_block": 32, "pixel_std": mean, "coverage": 1.0}
    arrival = Arrival(*compare_frames_triton(*frames, index, index.bool(), **settings))
    blocks = torch.zeros(1, 8, 16)
    parts = {"frame_state": frames[1], "age": blocks.int(), "gain": blocks, "frame_index": index}
    history = types.SimpleNamespace(**parts)
    advance_triton(history, arrival, torch.zeros(1, 8, 256, 512), blocks.bool(), blocks)


if __name__ == "__main__":
    with compiling(int(sys.argv[1])) as compiled:
        launch_all()
    report(compiled)
