"""Every kernel compiles for its GPUs, without one, and as it was designed."""

import pytest

from tests.kernels.compiled import compiled_by

pytest.importorskip("triton")

COMPILING = "tests.sparse.triton_ops.compiling"
CONVOLUTIONS = {"bottleneck_kernel", "box_convolution_kernel", "convolution_kernel"}
STATISTICS = {"combine_kernel", "statistics_kernel"}
KERNELS = {"compact_kernel", "copy_kernel", "pool_kernel", "upsample_kernel"}
KERNELS |= CONVOLUTIONS | STATISTICS


@pytest.mark.parametrize(
    "capability,dtype",
    [
        (90, "float16"),
        pytest.param(90, "bfloat16", marks=pytest.mark.slow),
        pytest.param(80, "float16", marks=pytest.mark.slow),
        pytest.param(90, "float32", marks=pytest.mark.slow),
    ],
)
def test_compiles(capability, dtype):
    kernels = compiled_by(COMPILING, capability, dtype)
    unused = set() if capability >= 90 else {"box_convolution_kernel"}
    if (capability, dtype) == (90, "float32"):  # faster in parts
        unused.add("bottleneck_kernel")
    assert {kernel["name"] for kernel in kernels} == KERNELS - unused
    for kernel in kernels:
        if kernel["name"] == "convolution_kernel":
            assert kernel["wgmma"] if capability == 90 else kernel["tensor_cores"]
            # Loads of less than four bytes would not be asynchronous.
            assert kernel["staged"] == ["a", "b"]
            # The stem of three half precision channels reads pixels of 8 bytes, all else 16.
            assert min(kernel["copies"]) >= 8
        if kernel["name"] == "box_convolution_kernel":
            assert kernel["wgmma"] and kernel["bulk_copies"] and not kernel["copies"]
            assert not kernel["through_registers"]


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float16", marks=pytest.mark.slow)])
def test_tuned_configurations_compile(dtype):
    """
    Configurations of float32 are derived from measured ones of float16: no search has compiled
    them.
    """
    kernels = compiled_by(COMPILING, 90, dtype, "NVIDIA H100 80GB HBM3")
    assert len(kernels) > 20
