"""The kernel that prepares pictures: on the GPU if there is one, else interpreted."""

import types

import pytest
import torch

pytest.importorskip("triton")

from blockcopy_d2.modeling.running.preparation import prepare, prepare_reference  # noqa: E402
from blockcopy_d2.modeling.running.triton_preparation import prepare_triton  # noqa: E402
from tests.kernels.compiled import compiled_by  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def a_model(block_size, pixels_per_block, divisibility, resize="mean", channels=3):
    mean = torch.tensor([103.5, 116.25, 123.7, 8.0], device=DEVICE)[:channels].view(-1, 1, 1)
    std = torch.tensor([57.4, 57.1, 58.4, 3.0], device=DEVICE)[:channels].view(-1, 1, 1)
    backbone = types.SimpleNamespace(size_divisibility=divisibility, padding_constraints={})
    base = types.SimpleNamespace(pixel_mean=mean, pixel_std=std, backbone=backbone)
    task = types.SimpleNamespace(pixels_per_block=pixels_per_block)
    options = {"block_size": block_size, "policy_resize": resize}
    return types.SimpleNamespace(task=task, base=base, **options)


@pytest.mark.parametrize(
    "block_size, pixels_per_block, size, canvas",
    [
        pytest.param(128, 32, (128, 256), (128, 256), marks=pytest.mark.slow),
        pytest.param(128, 32, (100, 230), (128, 256), marks=pytest.mark.slow),
        (128, 32, (50, 70), (64, 96)),
        (64, 32, (60, 90), (64, 96)),
        (32, 32, (30, 50), (32, 64)),
        (64, 8, (40, 50), (64, 64)),
    ],
)
@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float16, marks=pytest.mark.slow), torch.float32]
)
def test_preparation(block_size, pixels_per_block, size, canvas, dtype):
    model = a_model(block_size, pixels_per_block, 32)
    images = torch.randint(0, 256, (2, 3, *size), device=DEVICE).to(torch.uint8)
    want, want_seen = prepare_reference(model, images, canvas, dtype)
    assert want.shape[-2:] == canvas
    window = block_size // pixels_per_block
    mean, std = model.base.pixel_mean, model.base.pixel_std
    arguments = (mean, std, canvas, want_seen.shape[-2:], window, dtype)
    got, got_seen = prepare_triton(images, *arguments)
    assert got.dtype == dtype and torch.equal(got, want)
    torch.testing.assert_close(got_seen, want_seen, atol=1e-5, rtol=1e-5)
    floats = prepare_triton(images.float(), *arguments)
    assert torch.equal(floats[0], got) and torch.equal(floats[1], got_seen)
    broken = images.float()
    broken[1, 2, 3, 4] = torch.nan
    (_, seen), (_, want_seen) = (
        prepare_triton(broken, *arguments),
        prepare_reference(model, broken, canvas, dtype),
    )
    assert seen.isnan().sum() == 1 and torch.equal(seen.isnan(), want_seen.isnan())


@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_channels(channels):
    model = a_model(64, 32, 32, channels=channels)
    images = torch.randint(0, 256, (3, channels, 30, 60), device=DEVICE).to(torch.uint8)
    want, want_seen = prepare_reference(model, images, (32, 64), torch.float32)
    mean, std = model.base.pixel_mean, model.base.pixel_std
    size = want_seen.shape[-2:]
    got, got_seen = prepare_triton(images, mean, std, (32, 64), size, 2, torch.float32)
    assert torch.equal(got, want)
    torch.testing.assert_close(got_seen, want_seen, atol=1e-5, rtol=1e-5)


def test_where_it_runs(monkeypatch):
    """PyTorch prepares blocks smaller than their policy pixels, and other types."""
    monkeypatch.setattr(
        "blockcopy_d2.modeling.running.preparation.triton_runs_on", lambda device: True
    )
    images = torch.randint(0, 256, (1, 3, 64, 96), device=DEVICE).to(torch.uint8)
    for block_size, dtype, resize in (
        (16, torch.uint8, "mean"),
        (128, torch.float64, "mean"),
        (128, torch.uint8, "mean"),
        (64, torch.uint8, "nearest"),
    ):
        model, pictures = a_model(block_size, 32, 32, resize), images.to(dtype)
        found = prepare(model, pictures, (64, 96), torch.float32)
        expected = prepare_reference(model, pictures, (64, 96), torch.float32)
        for one, other in zip(found, expected):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5, check_dtype=False)


@pytest.mark.parametrize("capability", [90, pytest.param(80, marks=pytest.mark.slow)])
def test_compiles(capability):
    found = compiled_by("tests.modeling.running.compiling", capability)
    names = {"prepare_kernel", "look_kernel", "judge_kernel", "advance_kernel", "count_kernel"}
    assert {kernel["name"] for kernel in found} == names
    assert len(found) == 8 and not any(kernel["spills"] for kernel in found)
