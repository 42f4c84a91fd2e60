"""Every kernel compiles for the GPUs it is meant for, without one, and as the design wants it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[3]
KERNELS = {
    "compact_kernel", "copy_kernel", "convolution_kernel", "pool_kernel", "upsample_kernel",
    "statistics_kernel", "combine_kernel", "bottleneck_kernel", "box_convolution_kernel",
}  # fmt: skip
SHARED_MEMORY = {90: 227 << 10, 80: 163 << 10}


def compiled(*arguments):
    command = [sys.executable, "-m", "tests.sparse.triton_ops.compiling", *arguments]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize(
    "capability,dtype",
    [
        (90, "float16"),
        (90, "bfloat16"),
        pytest.param(80, "float16", marks=pytest.mark.slow),
        pytest.param(90, "float32", marks=pytest.mark.slow),
    ],
)
def test_compiles(capability, dtype):
    kernels = compiled(str(capability), dtype)
    unused = set() if capability >= 90 else {"box_convolution_kernel"}
    if (capability, dtype) == (90, "float32"):  # faster in parts
        unused.add("bottleneck_kernel")
    assert {kernel["name"] for kernel in kernels} == KERNELS - unused
    for kernel in kernels:
        assert kernel["bytes"] > 0 and kernel["shared_memory"] <= SHARED_MEMORY[capability]
        if kernel["name"] == "convolution_kernel":
            assert kernel["wgmma"] if capability == 90 else kernel["tensor_cores"]
            # The stem of three half precision channels reads pixels of 8 bytes, all else 16.
            assert min(kernel["copies"]) >= 8
        if kernel["name"] == "box_convolution_kernel":
            assert kernel["wgmma"] and kernel["bulk_copies"] and not kernel["copies"]
            assert not kernel["through_registers"]


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float16", marks=pytest.mark.slow)])
def test_tuned_configurations_compile(dtype):
    """Those of float32 are derived from measured ones of float16: no search has compiled them."""
    kernels = compiled("90", dtype, "NVIDIA H100 80GB HBM3")
    assert len(kernels) > 20
    assert all(kernel["shared_memory"] <= SHARED_MEMORY[90] for kernel in kernels)
