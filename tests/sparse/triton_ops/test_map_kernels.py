"""Kernels of single maps against their plain references: lists, copies, pools, statistics."""

import pytest
import torch

pytest.importorskip("triton")

from blockcopy_d2.sparse.program import Activation  # noqa: E402
from blockcopy_d2.sparse.triton_ops.compact import (  # noqa: E402
    allocate_list,
    compact,
    compact_reference,
)
from blockcopy_d2.sparse.triton_ops.copy import CopyLaunch, copy_reference  # noqa: E402
from blockcopy_d2.sparse.triton_ops.normalization import (  # noqa: E402
    StatisticsLaunch,
    statistics_reference,
)
from blockcopy_d2.sparse.triton_ops.pool import PoolLaunch, pool_reference  # noqa: E402
from blockcopy_d2.sparse.triton_ops.resample import (  # noqa: E402
    UpsampleLaunch,
    upsample_reference,
)
from tests.sparse.triton_ops.maps import (  # noqa: E402
    DEVICE,
    GPU,
    active_of,
    blocks_of,
    feature_map,
    pixels_of,
    tiling_of,
)


@pytest.mark.parametrize("shape,factor", [((1, 8, 16), 1), ((2, 5, 7), 2), ((1, 40, 33), 1)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_compact(shape, factor, share):
    active = torch.rand(shape, device=DEVICE) < share
    blocks = allocate_list(active, factor)
    compact(active, factor, blocks)
    expected = compact_reference(active, factor)
    assert blocks.count.item() == len(expected)
    assert torch.equal(blocks.blocks[: len(expected)].long(), expected)
    assert not blocks.blocks[len(expected) :].any()


@pytest.mark.parametrize("strided", [False, True])
def test_copy_takes_tensors_of_any_strides(strided):
    x = torch.randn(2, 3, 13, 18, device=DEVICE)
    if strided:
        x = x.contiguous(memory_format=torch.channels_last)
    out = feature_map(torch.full((2, 3, 13, 18), torch.nan))
    active = active_of(2, (13, 18), 4)
    CopyLaunch(out, tiling_of(active, 4), device=GPU)(x, blocks_of(active))
    expected = torch.where(pixels_of(active, 4, out.size), copy_reference(x), torch.nan)
    assert torch.allclose(out.as_nchw(), expected, equal_nan=True)


@pytest.mark.parametrize("per_stream", [False, True])
def test_copy_scales_and_shifts(per_stream):
    x = torch.randn(2, 6, 9, 14, device=DEVICE)
    scale, shift = torch.randn(2, *((2, 6) if per_stream else (6,)), device=DEVICE)
    out, active = feature_map(torch.full_like(x, torch.nan)), active_of(2, (9, 14), 4)
    options = dict(scale=scale, shift=shift, activation=Activation("relu"))
    CopyLaunch(out, tiling_of(active, 4), device=GPU, **options)(x, blocks_of(active))
    expected = torch.where(pixels_of(active, 4, out.size), copy_reference(x, **options), torch.nan)
    torch.testing.assert_close(out.as_nchw(), expected, equal_nan=True)


def check_map(launch, x, expected, tile):
    """`launch(x, out, tiling)` fills the active blocks of `out`, and no others."""
    out = feature_map(torch.full_like(expected, torch.nan))
    active = active_of(len(x), out.size, tile)
    launch(feature_map(x), out, tiling_of(active, tile))(blocks_of(active))
    expected = torch.where(pixels_of(active, tile, out.size), expected, torch.nan)
    torch.testing.assert_close(out.as_nchw(), expected, equal_nan=True, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("kernel, stride", [((3, 3), 2), ((2, 3), 1), ((5, 1), 2)])
def test_pool(kind, kernel, stride):
    dilation = (2, 1) if kind == "max" else (1, 1)
    padding = tuple(extent // 2 for extent in kernel)
    options = dict(kind=kind, kernel=kernel, stride=stride, padding=padding, dilation=dilation)
    x = torch.randn(2, 5, 13, 18, device=DEVICE)
    check_map(
        lambda x, out, tiling: PoolLaunch(x, out, tiling, device=GPU, **options),
        *(x, pool_reference(x, **options)),
        tile=4,
    )


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("scale", [2, 3])
def test_upsample(mode, scale):
    x = torch.randn(2, 5, 7, 9, device=DEVICE)
    check_map(
        lambda x, out, tiling: UpsampleLaunch(x, out, tiling, scale=scale, mode=mode, device=GPU),
        *(x, upsample_reference(x, scale=scale, mode=mode)),
        tile=2 * scale,
    )


@pytest.mark.parametrize("normalized", ["affine", "plain", "mean"])
def test_statistics_of_a_map_of_which_blocks_change(normalized):
    x, changed = torch.randn(2, 2, 12, 9, 14, device=DEVICE) + 3
    weight, bias = torch.randn(2, 12, device=DEVICE)
    kinds = {"affine": (weight, bias, 1e-5), "plain": (None, None, 1e-5), "mean": None}
    options = dict(groups=12 if normalized == "mean" else 3, normalize=kinds[normalized])
    kept = tuple(torch.full((2, 12, 12), torch.nan, device=DEVICE) for _ in range(2))
    read, active = feature_map(x), torch.ones(2, 3, 4, dtype=torch.bool, device=DEVICE)
    launch = StatisticsLaunch(read, tiling_of(active, 4), kept, device=GPU, **options)
    launch(blocks_of(active))
    active = active_of(2, (9, 14), 4)
    x = torch.where(pixels_of(active, 4, read.size), changed, x)
    read.pixels.copy_(x.permute(0, 2, 3, 1))
    launch(blocks_of(active))
    scale, shift = statistics_reference(x, **options)
    torch.testing.assert_close(launch.scale, scale, rtol=1e-4, atol=1e-4)
    if shift is not None:
        torch.testing.assert_close(launch.shift, shift, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "activation",
    [
        Activation("relu"),
        Activation("relu6"),
        Activation("sigmoid"),
        Activation("silu"),
        Activation("hardswish"),
        Activation("hardsigmoid"),
        Activation("elu", (0.7,)),
        Activation("hardtanh", (-0.5, 2.0)),
        Activation("leaky_relu", (0.3,)),
    ],
    ids=lambda activation: activation.name,
)
def test_activations(activation):
    x = torch.linspace(-8, 8, 4 * 6 * 5, device=DEVICE).view(1, 4, 6, 5)
    x[0, 0, 0, 0] = torch.nan
    active = torch.ones(1, 2, 2, dtype=torch.bool, device=DEVICE)
    out = feature_map(torch.zeros_like(x))
    CopyLaunch(out, tiling_of(active, 4), activation=activation, device=GPU)(x, blocks_of(active))
    expected = copy_reference(x, activation=activation)
    torch.testing.assert_close(out.as_nchw(), expected, equal_nan=True, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_what_tensor_cores_read_is_rounded(precision):
    x = torch.randn(1, 4, 6, 8, device=DEVICE)
    x[0, 0, 0, :3] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    active = torch.ones(1, 2, 2, dtype=torch.bool, device=DEVICE)
    out = feature_map(torch.full_like(x, torch.nan))
    CopyLaunch(out, tiling_of(active, 4), precision=precision, device=GPU)(x, blocks_of(active))
    expected = copy_reference(x, precision=precision)
    assert torch.equal(out.as_nchw().nan_to_num(), expected.nan_to_num())
    assert torch.equal(out.as_nchw().isnan(), x.isnan())
    assert (expected - x)[x.isfinite()].abs().max() <= 2**-11 * x[x.isfinite()].abs().max()
    if precision == "tf32":
        assert not (expected[~x.isnan()].view(torch.int32) & 0x1FFF).any()
