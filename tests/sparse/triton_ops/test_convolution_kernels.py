"""Kernels of convolutions against their plain references."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from blockcopy_d2.kernels.tf32 import round_tf32_reference  # noqa: E402
from blockcopy_d2.sparse.program import Activation  # noqa: E402
from blockcopy_d2.sparse.triton_ops.bottleneck import (  # noqa: E402
    BottleneckConfig,
    BottleneckLaunch,
    BottleneckShape,
    bottleneck_reference,
    pack_bottleneck,
)
from blockcopy_d2.sparse.triton_ops.box_conv import (  # noqa: E402
    BoxConfig,
    BoxConvolutionLaunch,
)
from blockcopy_d2.sparse.triton_ops.conv import (  # noqa: E402
    ConvolutionLaunch,
)
from blockcopy_d2.sparse.triton_ops.conv_levels import ConvolutionLevel  # noqa: E402
from blockcopy_d2.sparse.triton_ops.conv_shape import (  # noqa: E402
    ConvolutionConfig,
    ConvolutionShape,
    convolution_reference,
    pack_weight,
)
from blockcopy_d2.sparse.triton_ops.partial_sums import Workspace, workspace_size  # noqa: E402
from tests.sparse.triton_ops.maps import (  # noqa: E402
    DEVICE,
    GPU,
    active_of,
    blocks_of,
    feature_map,
    pixels_of,
    tiling_of,
)

NUM_SMS = GPU.num_sms
CONFIG = ConvolutionConfig(64, 32, 32)


def check_convolution(
    shape, config, sizes, *, tiles, batch=1, residual=False, share=0.5, dtype=torch.float32
):
    """One launch on maps of several sizes, twice: nothing may be left over from the first."""
    levels, expected, active = [], [], None
    for size, tile in zip(sizes, tiles):
        x = torch.randn(batch, shape.in_channels, *size, device=DEVICE).to(dtype)
        weight = torch.randn(
            shape.out_channels, shape.in_channels // shape.groups, *shape.kernel, device=DEVICE
        ).to(dtype)
        bias = torch.randn(shape.out_channels, device=DEVICE).to(dtype)
        other = None
        if residual:
            small = [extent // shape.residual_scale for extent in size]
            other = torch.randn(batch, shape.out_channels, *small, device=DEVICE).to(dtype)
        result = convolution_reference(x, weight, bias, shape, other)
        out = feature_map(torch.full_like(result, torch.nan), dtype)
        if active is None:
            active = active_of(batch, out.size, tile, share)
        levels.append(
            ConvolutionLevel(
                feature_map(x, dtype),
                out,
                pack_weight(weight, bias, shape, config),
                tiling_of(active, tile),
                None if other is None else feature_map(other, dtype),
            )
        )
        expected.append(torch.where(pixels_of(active, tile, out.size), result, torch.nan))
    boxes = isinstance(config, BoxConfig)
    workspace = Workspace(workspace_size(config, NUM_SMS), NUM_SMS, DEVICE)
    launch = (BoxConvolutionLaunch if boxes else ConvolutionLaunch)(
        shape,
        config,
        levels,
        precision="tf32" if boxes else "ieee",
        workspace=workspace,
        device=GPU,
    )
    bound = 1e-4 if dtype == torch.float32 else 1e-2
    if boxes and dtype == torch.float32:
        # TF32: rounded results; on a GPU, sums of up to a thousand products of 10 bits.
        bound = 1e-1 if DEVICE == "cuda" else 1e-3
    tolerance = {"rtol": bound, "atol": bound}
    for _ in range(2):
        workspace.sums.fill_(torch.nan)
        launch(blocks_of(active))
        for level, truth in zip(levels, expected):
            found = level.out.as_nchw()
            torch.testing.assert_close(found, truth, equal_nan=True, **tolerance)
    assert not workspace.arrivals.any()


def shape_of(in_channels, out_channels, kernel, *, groups=1, stride=1, **options):
    return ConvolutionShape(
        in_channels,
        out_channels,
        groups,
        (kernel,) * 2,
        stride,
        (kernel // 2,) * 2,
        (1, 1),
        **options,
    )


@pytest.mark.parametrize(
    "config",
    [
        ConvolutionConfig(64, 32, 32),
        ConvolutionConfig(32, 64, 64, swap=True),
        ConvolutionConfig(64, 64, 32, max_splits=8),
        ConvolutionConfig(64, 16, 32, per_sm=1),
        ConvolutionConfig(32, 32, 32, max_splits=4, per_sm=2, swap=True),
    ],
    ids=str,
)
def test_configurations_agree(config):
    check_convolution(shape_of(40, 48, 3), config, [(9, 14)], tiles=[4], batch=2)


@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
def test_reductions_are_split_by_the_active_count(share):
    config = ConvolutionConfig(16, 32, 64, max_splits=8)
    check_convolution(shape_of(96, 32, 3), config, [(8, 24)], tiles=[4], share=share)


@pytest.mark.parametrize("residual_scale", [1, 2])
def test_residual_and_activation(residual_scale):
    shape = shape_of(
        32, 24, 1, residual_scale=residual_scale, activation=Activation("leaky_relu", (0.2,))
    )
    check_convolution(shape, CONFIG, [(12, 18)], tiles=[4], residual=True)


@pytest.mark.parametrize("in_channels", [1, 3, 6])
def test_few_input_channels(in_channels):
    check_convolution(shape_of(in_channels, 20, 7, stride=2), CONFIG, [(19, 26)], tiles=[4])


def test_levels_in_one_launch():
    config = ConvolutionConfig(32, 16, 32, max_splits=4)
    check_convolution(shape_of(32, 24, 3), config, [(16, 24), (8, 12), (3, 5)], tiles=[8, 4, 2])


def test_levels_of_strided_convolutions_with_clipped_blocks():
    config = ConvolutionConfig(16, 16, 16, per_sm=1)
    sizes = [(29, 43), (15, 22)]
    check_convolution(shape_of(16, 12, 3, stride=2), config, sizes, tiles=[8, 4], batch=2)


@pytest.mark.parametrize("channels,groups", [(64, 8), (48, 48), (24, 2), (160, 5)])
def test_groups(channels, groups):
    check_convolution(shape_of(channels, channels, 3, groups=groups), CONFIG, [(9, 14)], tiles=[4])


BOX_CONFIGS = [
    BoxConfig(64, 64, 32),
    BoxConfig(16, 64, 16, per_sm=2),
    BoxConfig(256, 64, 32, per_sm=0),
    BoxConfig(64, 128, 16, flatten=True),
    BoxConfig(64, 64, 32, per_sm=2, max_splits=4),
]
needs_boxes = pytest.mark.skipif(not GPU.bulk_copies, reason="needs a tensor memory accelerator")


@needs_boxes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("config", BOX_CONFIGS, ids=str)
def test_boxes(config, dtype):
    shape = dataclasses.replace(shape_of(64, 48, 3), dilation=(2, 2), padding=(2, 2))
    check_convolution(shape, config, [(13, 18)], tiles=[8], batch=2, dtype=dtype)
    check_convolution(shape_of(32, 80, 1), config, [(9, 14)], tiles=[8], dtype=dtype, share=1)
    check_convolution(shape_of(32, 80, 1), config, [(9, 14)], tiles=[8], dtype=dtype, share=0)


@needs_boxes
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_boxes_are_split_by_the_active_count(share):
    config = BoxConfig(16, 64, 16, per_sm=1, max_splits=8)
    check_convolution(shape_of(96, 32, 3), config, [(8, 24)], tiles=[4], share=share)


@needs_boxes
@pytest.mark.parametrize("config", BOX_CONFIGS[:2], ids=str)
def test_boxes_of_several_levels(config):
    sizes = [(19, 22), (10, 11), (5, 6), (3, 3), (3, 3)]
    check_convolution(shape_of(32, 24, 3), config, sizes, tiles=[8, 4, 2, 1, 1])


@needs_boxes
@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 1.0])
def test_levels_are_split_together(share):
    """Parts of tiles of all sizes are kept side by side."""
    config = BoxConfig(64, 64, 16, per_sm=4, max_splits=4)
    sizes = [(19, 22), (10, 11), (5, 6), (3, 3), (3, 3)]
    check_convolution(shape_of(32, 24, 3), config, sizes, tiles=[8, 4, 2, 1, 1], share=share)


@needs_boxes
@pytest.mark.parametrize("residual_scale", [1, 2])
def test_boxes_with_residual_and_activation(residual_scale):
    shape = shape_of(
        32, 24, 1, residual_scale=residual_scale, activation=Activation("leaky_relu", (0.2,))
    )
    check_convolution(shape, BOX_CONFIGS[0], [(12, 18)], tiles=[8], residual=True)


@pytest.mark.parametrize("boxes", [False, pytest.param(True, marks=needs_boxes)])
@pytest.mark.parametrize("first_out", [32, 3])
@pytest.mark.parametrize("num_levels", [1, 2])
def test_two_convolutions_of_one_map(first_out, num_levels, boxes):
    """Tiles of channels that belong to one of the two (32), and one that belongs to both (3)."""
    shape = dataclasses.replace(
        shape_of(16, first_out + 20, 3), first_out=first_out, activation=Activation("relu")
    )
    config = BoxConfig(64, 64, 16) if boxes else CONFIG
    sizes, tiles = [(9, 14), (5, 7)][:num_levels], [4, 2][:num_levels]
    active = active_of(1, sizes[0], 4)
    levels, expected = [], []
    for size, tile in zip(sizes, tiles):
        x = torch.randn(1, 16, *size, device=DEVICE)
        weight, bias = torch.randn(first_out + 20, 16, 3, 3), torch.randn(first_out + 20)
        weight, bias = weight.to(DEVICE), bias.to(DEVICE)
        y = F.conv2d(x, weight, bias, padding=1)
        parts = [y[:, :first_out].relu(), y[:, first_out:]]
        mask = pixels_of(active, tile, size)
        expected.append([torch.where(mask, part, torch.nan) for part in parts])
        out, second = (feature_map(torch.full_like(part, torch.nan)) for part in parts)
        packed = pack_weight(weight, bias, shape, config)
        tiling = tiling_of(active, tile)
        levels.append(ConvolutionLevel(feature_map(x), out, packed, tiling, second=second))
    launch = (BoxConvolutionLaunch if boxes else ConvolutionLaunch)(
        shape,
        config,
        levels,
        precision="tf32" if boxes else "ieee",
        workspace=Workspace(0, NUM_SMS, DEVICE),
        device=GPU,
    )
    launch(blocks_of(active))
    bound = 1e-4
    if boxes:
        bound = 1e-1 if DEVICE == "cuda" else 1e-3
    tolerance = {"rtol": bound, "atol": bound, "equal_nan": True}
    for level, parts in zip(levels, expected):
        for found, truth in zip((level.out, level.second), parts):
            torch.testing.assert_close(found.as_nchw(), truth, **tolerance)


def test_half_precision():
    check_convolution(shape_of(40, 32, 3), CONFIG, [(13, 18)], tiles=[4], dtype=torch.float16)


def test_weights_of_units_are_those_of_the_groups():
    """A grouped convolution of many groups runs as several dense ones of at least 32 channels."""
    assert shape_of(256, 256, 3, groups=32).units == (8, 32, 32)
    assert shape_of(64, 64, 3, groups=64).units == (2, 32, 32)
    assert shape_of(64, 64, 3).units == (1, 64, 64)


@pytest.mark.parametrize("next_channels", [0, 16])
@pytest.mark.parametrize("stride,residual", [(1, True), (2, False)])
def test_bottleneck(next_channels, stride, residual):
    shape = BottleneckShape(
        16,
        32,
        48,
        next_channels,
        (3, 3),
        stride,
        (1, 1),
        (1, 1),
        middle_relu=True,
        relu=True,
        next_relu=residual,
        residual=residual,
    )
    x = torch.randn(2, 16, 13, 18, device=DEVICE)
    sizes = [(32, 16, 3), (48, 32, 1), (next_channels, 48, 1)][: 3 if next_channels else 2]
    convolutions = [
        (torch.randn(out, inside, k, k, device=DEVICE), torch.randn(out, device=DEVICE))
        for out, inside, k in sizes
    ]
    size = tuple(-(-extent // stride) for extent in x.shape[-2:])
    other = torch.randn(2, 48, *size, device=DEVICE) if residual else None
    expected = bottleneck_reference(x, shape, convolutions, other)
    active = active_of(2, size, 4)
    out, following = (
        truth if truth is None else feature_map(torch.full_like(truth, torch.nan))
        for truth in expected
    )
    BottleneckLaunch(
        shape,
        BottleneckConfig(32, 16, 16),
        x=feature_map(x),
        out=out,
        following=following,
        weights=pack_bottleneck(*convolutions),
        tiling=tiling_of(active, 4),
        residual=feature_map(other) if residual else None,
        precision="ieee",
        device=GPU,
    )(blocks_of(active))
    mask = pixels_of(active, 4, size)
    for found, truth in zip((out, following), expected):
        if truth is not None:
            truth = torch.where(mask, truth, torch.nan)
            torch.testing.assert_close(found.as_nchw(), truth, equal_nan=True, rtol=1e-4, atol=1e-3)


def test_reference_of_a_residual_is_nearest_upsampling():
    shape = shape_of(2, 2, 1, residual_scale=2)
    residual = torch.randn(1, 2, 3, 4)
    found = convolution_reference(
        torch.zeros(1, 2, 6, 8), torch.zeros(2, 2, 1, 1), None, shape, residual
    )
    assert torch.equal(found, F.interpolate(residual, scale_factor=2))


@pytest.mark.parametrize("config", [CONFIG, BOX_CONFIGS[0]], ids=["gather", "box"])
@pytest.mark.parametrize("out_lifted", [True, False])
def test_what_is_added_later_keeps_all_of_its_bits(config, out_lifted):
    """Lifted maps: products cut off to the nearest, sums get the value itself."""
    shape, active = shape_of(32, 32, 1, residual_scale=1), active_of(1, (8, 16), 8, 1.0)
    x = torch.randn(1, 32, 8, 16, device=DEVICE)
    x[0, :2, 0, 0] = torch.tensor([torch.inf, torch.nan])
    lifted = (x.view(torch.int32) + 0x1000).view(torch.float32)
    residual, out = feature_map(lifted), feature_map(torch.full_like(x, torch.nan))
    residual.lifted, out.lifted = True, out_lifted
    nothing = torch.zeros(32, 32, 1, 1, device=DEVICE)
    level = ConvolutionLevel(
        feature_map(torch.zeros_like(x)),
        out,
        pack_weight(nothing, None, shape, config),
        tiling_of(active, 8),
        residual,
    )
    launch = (BoxConvolutionLaunch if isinstance(config, BoxConfig) else ConvolutionLaunch)(
        shape,
        config,
        [level],
        precision="tf32",
        workspace=Workspace(0, NUM_SMS, DEVICE),
        device=GPU,
    )
    launch(blocks_of(active))
    found = out.as_nchw()
    assert found[0, :2, 0, 0].isnan().all()
    expected = lifted if out_lifted else round_tf32_reference(x)
    finite = x.isfinite()
    assert torch.equal(found[finite], expected[finite])
    cut_off = (lifted.view(torch.int32) & ~0x1FFF).view(torch.float32)
    assert (cut_off - x)[finite].abs().max() <= 2**-11 * x[finite].abs().max()
