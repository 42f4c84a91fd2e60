"""The kernel that resizes pictures: on the GPU if there is one, else interpreted."""

import pytest
import torch

pytest.importorskip("triton")

from blockcopy_d2.data.device_resize import resample_reference  # noqa: E402
from blockcopy_d2.data.resize_filter import taps  # noqa: E402
from blockcopy_d2.data.triton_resize import resample_triton  # noqa: E402
from tests.kernels.compiled import compiled_by  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("planes", [True, False])
@pytest.mark.parametrize("dim, extent", [(2, 111), (1, 64), (2, 300), (1, 7)])
def test_resample(planes, dim, extent):
    torch.manual_seed(0)
    picture = torch.randint(0, 256, (37, 290, 3), dtype=torch.uint8, device=DEVICE).permute(2, 0, 1)
    picture = picture.contiguous() if planes else picture
    filter_ = taps(picture.shape[dim], extent, picture.device)
    found = resample_triton(picture, *filter_, dim)
    assert found.is_contiguous() and found.dtype == torch.uint8
    assert torch.equal(found, resample_reference(picture, *filter_, dim))


def test_compiles():
    found = compiled_by("tests.data.compiling", 90)
    assert {kernel["name"] for kernel in found} == {"resample_kernel"} and len(found) == 2
    assert not any(kernel["spills"] for kernel in found)
