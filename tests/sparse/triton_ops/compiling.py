"""Compiles what a launch would run, without a GPU: to run in a process that does not interpret."""

import contextlib
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

_TYPES = {
    torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32",
    torch.int32: "*i32", torch.int64: "*i64", torch.uint8: "*u8",
}  # fmt: skip


@contextlib.contextmanager
def compiling(capability):
    """While open, a launch compiles its kernel for a compute capability such as 90 and runs not.

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

    with mock.patch.object(JITFunction, "run", compile_launch):
        yield compiled
