"""Compiles what a launch would run, without a GPU: to run in a process that does not interpret."""

import contextlib
import json
import re
import sys
from unittest import mock

import torch
import torch.nn.functional as F
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from blockcopy_d2.engine.tune_kernels import launches
from blockcopy_d2.kernels.device import Device
from blockcopy_d2.sparse import (
    BlockGrid,
    BlockSparseModule,
    StreamState,
    block_sparse,
    module,
    triton_execution,
)
from blockcopy_d2.sparse.triton_ops import compact

# An asynchronous copy to shared memory, and how many bytes it takes.
_COPY = re.compile(r"cp\.async\.c\w\.shared\.global[^;]*?\], (\w+)")
_TYPES = {
    torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32",
    torch.int32: "*i32", torch.int64: "*i64", torch.uint8: "*u8",
}  # fmt: skip


@contextlib.contextmanager
def compiling(capability, gpu=None):
    """While open, a launch compiles its kernel for a compute capability such as 90 and runs not,
    with the table of kernels of the Hopper GPU of that name.

    Yields:
        dict: what was compiled, name and specialization -> triton's CompiledKernel.
    """
    compiled = {}

    def compile_launch(function, *args, grid, warmup, **kwargs):
        parameters = dict(zip(function.arg_names, args))
        parameters.update(
            {key: kwargs.pop(key) for key in list(kwargs) if key in function.arg_names}
        )
        signature, constants, attributes = {}, {}, {}
        for position, parameter in enumerate(function.params):
            name, value = parameter.name, parameters[parameter.name]
            if parameter.is_constexpr or (isinstance(value, int) and value == 1):
                signature[name], constants[name] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[name] = _TYPES[value.dtype]
                if value.data_ptr() % 16 == 0:
                    attributes[position,] = [["tt.divisibility", 16]]
            elif isinstance(value, TensorDescriptor):
                box = ",".join(map(str, value.block_shape))
                signature[name] = f"tensordesc<{_TYPES[value.base.dtype][1:]}[{box}]>"
            elif isinstance(value, float):
                signature[name] = "fp32"
            else:
                signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
                if value % 16 == 0:
                    attributes[position,] = [["tt.divisibility", 16]]
        key = str((function.__name__, signature, constants, attributes, kwargs))
        if key not in compiled:
            source = ASTSource(function, signature, constants, attributes)
            target = GPUTarget("cuda", capability, 32)
            compiled[key] = triton.compile(source, target=target, options=kwargs)

    class Target(Device):
        def __init__(self, device):
            super().__init__(device)
            self.bulk_copies = self.pdl = capability >= 90
            if gpu is not None:
                self.name, self.capability = gpu, divmod(capability, 10)
                self.num_sms, self.shared_memory = 132, 227 << 10

    class Lowered(triton_execution.LoweredForTriton):
        def __init__(self, program, tensors):
            super().__init__(program, tensors)
            self.precision = "tf32"

    with (
        mock.patch.object(JITFunction, "run", compile_launch),
        mock.patch.object(triton_execution, "LoweredForTriton", Lowered),
        mock.patch.object(triton_execution, "Device", Target),
        mock.patch.object(compact, "device_of", Target),
        mock.patch.object(
            module, "execution", lambda backend, tensor: triton_execution.TritonExecution
        ),
    ):
        yield compiled


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
def main(capability, dtype, gpu=None):
    """Prints what was compiled for the launches of Everything, as JSON; for those of Mask R-CNN
    R50-FPN with the table of a GPU, if there is one."""
    with compiling(capability, gpu) as compiled:
        if gpu is None:
            network = BlockSparseModule(Everything().eval().to(dtype), backend="triton")
            grid = BlockGrid.full(block_size=64, image_size=(256, 512))
            with block_sparse(network, grid, StreamState()):
                network(torch.randn(1, 3, 256, 512, dtype=dtype))
        else:
            launches("Cityscapes/mask_rcnn_R_50_FPN.yaml", (512, 1024), 128, dtype, device="cpu")
    kernels = [
        {
            "name": kernel.metadata.name,
            "tensor_cores": "wgmma" in kernel.asm["ptx"] or "mma.sync" in kernel.asm["ptx"],
            "wgmma": "wgmma" in kernel.asm["ptx"],
            "through_registers": "dot_op<{opIdx" in kernel.asm["ttgir"],
            "bulk_copies": len(re.findall(r"cp\.async\.bulk\.tensor", kernel.asm["ptx"])),
            "copies": [int(size, 0) for size in _COPY.findall(kernel.asm["ptx"])],
            "shared_memory": kernel.metadata.shared,
            "bytes": len(kernel.asm["cubin"]),
        }
        for kernel in compiled.values()
    ]
    print(json.dumps(kernels))


if __name__ == "__main__":
    main(int(sys.argv[1]), getattr(torch, sys.argv[2]), *sys.argv[3:])
