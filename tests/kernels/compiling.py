"""Compiles what launches would run, without a GPU: for processes that do not interpret."""

import contextlib
import json
import re
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from blockcopy_d2.kernels.device import Device
from tests.kernels.compiled import SHARED_MEMORY

# Variables that are copied to shared memory asynchronously.
_STAGED = re.compile(r"%([a-z]+)_\d+ = ttg\.async_copy_global_to_local")
# Such a copy, and how many bytes it takes.
_COPY = re.compile(r"cp\.async\.c\w\.shared\.global[^;]*?\], (\w+)")
_TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
_TYPES |= {torch.uint8: "u8", torch.int16: "i16", torch.int32: "i32", torch.int64: "i64"}
_TYPES |= {torch.float64: "fp64"}


def gpu(capability, name=None):
    """Device of a GPU like the H200, with this compute capability, such as 90."""
    device = Device("cpu")
    device.num_sms, device.shared_memory = 132, SHARED_MEMORY[capability]
    device.assembly = True
    device.pdl = device.bulk_copies = capability >= 90
    if name is not None:
        device.name, device.capability = name, divmod(capability, 10)
    return device


class _Arguments:
    """The arguments of a launch as Triton sees them."""

    def __init__(self, function, values):
        self.signature, self.constants, self.attributes = {}, {}, {}
        for position, parameter in enumerate(function.params):
            name = parameter.name
            self.signature[name] = self._describe(values[name], (position,), parameter)

    def _describe(self, value, path, parameter):
        if parameter.is_constexpr:
            self.constants[path] = value
            return "constexpr"
        if isinstance(value, tuple):
            return tuple(self._describe(x, (*path, i), parameter) for i, x in enumerate(value))
        if isinstance(value, torch.Tensor):
            if value.data_ptr() % 16 == 0:
                self.attributes[path] = [["tt.divisibility", 16]]
            return "*" + _TYPES[value.dtype]
        if isinstance(value, TensorDescriptor):
            return (
                f"tensordesc<{_TYPES[value.base.dtype]}[{','.join(map(str, value.block_shape))}]>"
            )
        if isinstance(value, float):
            return "fp32"
        # Triton specializes what is in tuples, whatever the parameter says.
        if not parameter.do_not_specialize or len(path) > 1:
            if value == 1:
                self.constants[path] = value
                return "constexpr"
            if value % 16 == 0:
                self.attributes[path] = [["tt.divisibility", 16]]
        return "i32" if -(2**31) <= value < 2**31 else "i64"


@contextlib.contextmanager
def compiling(capability):
    """
    While open, a launch compiles its kernel for a compute capability such as 90 and does not run.

    Yields:
        dict: what was compiled, name and specialization -> triton's CompiledKernel.
    """
    compiled = {}

    def compile_launch(function, *args, grid, warmup, **kwargs):
        values = dict(zip(function.arg_names, args))
        values |= {name: kwargs.pop(name) for name in function.arg_names if name in kwargs}
        seen = _Arguments(function, values)
        key = str((function.__name__, *vars(seen).values(), kwargs))
        if key not in compiled:
            source = ASTSource(function, seen.signature, seen.constants, seen.attributes)
            target = GPUTarget("cuda", capability, 32)
            compiled[key] = triton.compile(source, target=target, options=kwargs)

    with mock.patch.object(JITFunction, "run", compile_launch):
        yield compiled


def report(compiled):
    """Prints what was compiled, as JSON, for the test in the process that asked."""
    kernels = [
        {
            "name": kernel.metadata.name,
            "tensor_cores": "wgmma" in kernel.asm["ptx"] or "mma.sync" in kernel.asm["ptx"],
            "wgmma": "wgmma" in kernel.asm["ptx"],
            "through_registers": "dot_op<{opIdx" in kernel.asm["ttgir"],
            "bulk_copies": len(re.findall(r"cp\.async\.bulk\.tensor", kernel.asm["ptx"])),
            "staged": sorted(set(_STAGED.findall(kernel.asm["ttgir"]))),
            "copies": [int(size, 0) for size in _COPY.findall(kernel.asm["ptx"])],
            "spills": kernel.asm["ptx"].count("st.local"),
            "wide_loads": "ld.global.v4" in kernel.asm["ptx"]
            or "ld.global.v2" in kernel.asm["ptx"],
            "shared_memory": kernel.metadata.shared,
            "bytes": len(kernel.asm["cubin"]),
        }
        for kernel in compiled.values()
    ]
    print(json.dumps(kernels))
