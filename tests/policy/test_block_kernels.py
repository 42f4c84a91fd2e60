"""Means of blocks by a kernel: on the GPU if there is one, else interpreted."""

import pytest
import torch

pytest.importorskip("triton")

from blockcopy_d2.policy.block_kernels import block_means_triton  # noqa: E402
from blockcopy_d2.policy.block_means import block_means_reference  # noqa: E402
from tests.kernels.compiled import compiled_by  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def poisoned():
    """Fills memory with NaN before it is written to."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("side", [8, 16, 32])
@pytest.mark.parametrize("streams, grid_shape, classes", [(1, (1, 1), 1), (2, (2, 3), 5)])
def test_means_of_blocks(side, streams, grid_shape, classes):
    assert_alike(side, streams, grid_shape, classes)


@pytest.mark.parametrize("channels", [1, 4])
def test_frames_of_other_numbers_of_channels(channels):
    assert_alike(8, 2, (1, 2), 2, channels)


def assert_alike(side, streams, grid_shape, classes, channels=3):
    size = (side * grid_shape[0], side * grid_shape[1])
    frame, state = torch.randn(2, streams, channels, *size)
    output, scale = torch.rand(streams, classes, *size), torch.rand(channels)
    maps = frame, state, output, scale
    want = block_means_reference(*maps, grid_shape)
    found = block_means_triton(*(x.to(DEVICE) for x in maps), grid_shape)
    torch.testing.assert_close(found.cpu(), want, rtol=1e-4, atol=1e-5)
    assert want.flatten(2).amin(dim=(0, 2)).min() > 0


@pytest.mark.parametrize("what", [0, 2])
def test_what_is_not_a_number_stays_in_its_block(what):
    maps = [*torch.randn(2, 1, 3, 16, 32), torch.rand(1, 2, 16, 32), torch.ones(3)]
    maps[what][0, 1, 4, 20] = torch.nan
    found = block_means_triton(*(x.to(DEVICE) for x in maps), (2, 4)).cpu()
    assert found[0, :, 0, 2].isnan().any()
    others = found.clone()
    others[0, :, 0, 2] = 0
    assert others.isfinite().all()


@pytest.mark.parametrize("capability", [90])
def test_compiles_without_a_gpu(capability):
    kernels = compiled_by("tests.policy.compiling_blocks", capability)
    names = {"block_means_kernel", "expect_kernel", "pick_kernel", "common_pixels_kernel"}
    names |= {"extents_kernel", "gain_kernel", "share_kernel", "report_kernel"}
    assert {kernel["name"] for kernel in kernels} == names
    for kernel in kernels:
        assert kernel["shared_memory"] < 100 << 10 and kernel["spills"] == 0
