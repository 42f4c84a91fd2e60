"""Compiles the launches of block-sparse networks, without a GPU: to run in a process that does not
interpret."""

import contextlib
import sys
from unittest import mock

import torch
import torch.nn.functional as F

from blockcopy_d2.engine.tune_kernels import launches
from blockcopy_d2.sparse import (
    BlockGrid,
    BlockSparseModule,
    StreamState,
    block_sparse,
    module,
    triton_execution,
)
from blockcopy_d2.sparse.triton_ops import compact
from tests.kernels.compiling import compiling, gpu, report


class Lowered(triton_execution.LoweredForTriton):
    def __init__(self, program, tensors):
        super().__init__(program, tensors)
        self.precision = "tf32"


@contextlib.contextmanager
def on_a_gpu(capability, name):
    """While open, networks on the CPU are launched as on a GPU."""
    device = gpu(capability, name)
    execution = triton_execution.TritonExecution
    with (
        mock.patch.object(triton_execution, "LoweredForTriton", Lowered),
        mock.patch.object(triton_execution, "Device", lambda _: device),
        mock.patch.object(compact, "device_of", lambda _: device),
        mock.patch.object(module, "execution", lambda backend, tensor: execution),
    ):
        yield


class Everything(torch.nn.Module):
    """A network that takes every kernel."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 64, 7, 2, 3)
        self.conv = torch.nn.Conv2d(64, 64, 3, 1, 1)
        self.grouped = torch.nn.Conv2d(64, 64, 3, 1, 1, groups=8)
        self.middle = torch.nn.Conv2d(64, 64, 3, 1, 1)
        self.last = torch.nn.Conv2d(64, 64, 1)
        self.norm = torch.nn.GroupNorm(8, 64)
        self.up = torch.nn.ConvTranspose2d(64, 64, 2, 2)
        self.predictor = torch.nn.Conv2d(64, 3, 1)
        self.other = torch.nn.Conv2d(64, 12, 1)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2, 1)
        x = self.conv(x) + F.interpolate(F.max_pool2d(x, 1, 2), scale_factor=2)
        x = F.relu(self.last(F.relu(self.middle(x))) + x)
        y = F.interpolate(F.relu(self.norm(self.grouped(x))), scale_factor=2, mode="bilinear")
        gain = F.adaptive_avg_pool2d(y, 1)
        y = self.up(F.avg_pool2d(y, 3, 2, 1))
        predicted = self.predictor(x), self.other(x), self.predictor(y), self.other(y)
        return predicted, F.interpolate(y, scale_factor=2), gain


@torch.no_grad()
def main(capability, dtype, name=None):
    """Reports what was compiled for the launches of Everything; for those of Mask R-CNN R50-FPN
    with the table of a GPU, if it is named."""
    with on_a_gpu(capability, name), compiling(capability) as compiled:
        if name is None:
            network = BlockSparseModule(Everything().eval().to(dtype), backend="triton")
            grid = BlockGrid.full(block_size=64, image_size=(256, 512))
            with block_sparse(network, grid, StreamState()):
                network(torch.randn(1, 3, 256, 512, dtype=dtype))
        else:
            launches("Cityscapes/mask_rcnn_R_50_FPN.yaml", (512, 1024), 128, dtype, device="cpu")
    report(compiled)


if __name__ == "__main__":
    main(int(sys.argv[1]), getattr(torch, sys.argv[2]), *sys.argv[3:])
