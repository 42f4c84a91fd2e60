"""
Code that all kernels share: the check for Triton (availability), the GPU (device), the start of a
kernel (dependent_launch), launches bound to their operands (launch), tables that kernels read
(table), CUDA graphs (graph), time in a graph (clock), copies of many tensors (copying, packing) and
float32 values for tensor cores (tf32). It imports without Triton.

Every kernel follows one convention, which tests/kernels/test_convention.py checks:

1. dispatch: a function that takes tensors of any device and asks :func:`triton_runs_on`;
2. launcher: a function or :class:`.launch.Launch` beside the kernel, which sizes the launch;
3. reference: the same in plain PyTorch, or as a few lines of arithmetic;
4. a test that compares launcher and reference, on a GPU or interpreted on a CPU.
"""

from .availability import has_triton, triton_runs_on

__all__ = ["has_triton", "triton_runs_on"]
