"""Every block-sparse rule against the masked-dense oracle, one operator at a time."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from blockcopy_d2.sparse import (
    BlockGrid,
    BlockSparseModule,
    MaskedDenseOracle,
    StreamState,
    block_sparse,
    num_blocks,
)


class Function(nn.Module):
    """A function of the features of two convolutions as a module."""

    def __init__(self, function, channels=6):
        super().__init__()
        # The first convolution makes the tested input a computed one, with negative values.
        self.conv = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.other = nn.Conv2d(3, channels, 1, stride=2)
        self.register_buffer("gain", torch.linspace(0.5, 2, channels).view(1, -1, 1, 1))
        self.register_buffer("weight", torch.randn(channels, 4, 4, 4))
        self.register_buffer("asymmetric", torch.randn(4, channels, 5, 1))
        self.register_buffer("weight2", torch.randn(channels, 4, 2, 2))
        self.norm = nn.BatchNorm2d(channels)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)
        self.group_norm = nn.GroupNorm(3, channels)
        nn.init.normal_(self.group_norm.weight)
        nn.init.normal_(self.group_norm.bias)
        # A copy, which follows this module to other devices and dtypes.
        self.function = copy.deepcopy(function)
        self.conv3x3 = Conv(3, padding=1)

    def forward(self, image):
        return self.function(self, self.conv(image), self.other(image))


class Conv(nn.Module):
    """A convolution as a case."""

    def __init__(self, kernel, **options):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shape = (6, 6 // options.get("groups", 1), kernel, kernel)
        self.register_buffer("weight", torch.randn(shape, generator=generator))
        self.register_buffer("bias", torch.randn(6, generator=generator))
        self.options = options

    def forward(self, m, x, y):
        return F.conv2d(x, self.weight, self.bias, **self.options)


def cells(x, rows, columns):
    return F.relu(F.adaptive_avg_pool2d(x, (rows, columns)))


CASES = {
    "conv1x1": Conv(1),
    "conv1x1_stride2": Conv(1, stride=2),
    "conv1x1_padded": Conv(1, padding=1, stride=2),
    "conv3x3": Conv(3, padding=1),
    "conv3x3_stride2": Conv(3, padding=1, stride=2),
    "conv3x3_dilated": Conv(3, padding=2, dilation=2),
    "conv3x3_dilated6": Conv(3, padding=6, dilation=6),
    "conv3x3_grouped": Conv(3, padding=1, groups=3),
    "conv3x3_depthwise": Conv(3, padding=1, groups=6),
    "conv5x5": Conv(5, padding=2),
    "conv7x7_stride2": Conv(7, padding=3, stride=2),
    "conv_asymmetric": lambda m, x, y: F.conv2d(x, m.asymmetric, padding=(2, 0)),
    "max_pool": lambda m, x, y: F.max_pool2d(x, 3, 2, 1),
    "max_pool_2x2": lambda m, x, y: F.max_pool2d(F.pad(x, (0, 0)), 2, 2, ceil_mode=True),
    "max_pool_subsample": lambda m, x, y: F.max_pool2d(x, 1, 2),
    "max_pool_of_relu": lambda m, x, y: F.max_pool2d(F.relu(x), 3, 2, 1),
    "avg_pool": lambda m, x, y: F.avg_pool2d(x, 3, 1, 1),
    "avg_pool_border_excluded": lambda m, x, y: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    "nearest": lambda m, x, y: F.interpolate(F.max_pool2d(x, 1, 2), size=x.shape[-2:]),
    "nearest_x2": lambda m, x, y: F.interpolate(x, scale_factor=2),
    "bilinear_x2": lambda m, x, y: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bilinear_corners": lambda m, x, y: F.interpolate(
        x, scale_factor=2, mode="bilinear", align_corners=True
    ),
    "transposed_k4s2p1": lambda m, x, y: F.conv_transpose2d(x, m.weight, stride=2, padding=1),
    "transposed_k2s2": lambda m, x, y: F.conv_transpose2d(x, m.weight2, stride=2),
    "batch_norm_first": lambda m, x, y: F.relu(m.norm(F.relu(x) + y)),
    "conv_batch_norm_add_relu": lambda m, x, y: F.relu(m.norm(x) + y),
    "add_scaled": lambda m, x, y: torch.add(x, y, alpha=2),
    "add_in_place": lambda m, x, y: F.relu_(x.add_(y)) + x,
    "group_norm": lambda m, x, y: F.relu(m.group_norm(x)),
    "group_norm_then_conv": lambda m, x, y: m.conv3x3(m, F.relu(m.group_norm(x)), y),
    "global_mean": lambda m, x, y: x * torch.sigmoid(F.adaptive_avg_pool2d(y, 1)),
    "global_mean_dims": lambda m, x, y: x + y.mean((2, 3), keepdim=True),
    "global_pool_upsampled": lambda m, x, y: torch.cat(
        [x, F.interpolate(F.adaptive_avg_pool2d(y, 1), size=x.shape[-2:], mode="bilinear")], 1
    ),
    "global_window": lambda m, x, y: x + F.avg_pool2d(y, y.shape[-2:], 1),
    "large_windows": lambda m, x, y: (x, F.avg_pool2d(y, (y.shape[-2] - 2, 20), 1)),
    "pyramid_cells": lambda m, x, y: (
        x
        + F.interpolate(
            cells(y, y.shape[-2] // 4, y.shape[-1] // 4), size=x.shape[-2:], mode="bilinear"
        )
    ),
    "uneven_cells": lambda m, x, y: (
        x + F.interpolate(cells(y, 3, 5), size=x.shape[-2:], mode="bilinear")
    ),
    "cat_then_conv": lambda m, x, y: m.conv3x3(m, torch.cat([x, y], 1)[:, 3:9], y),
    "split": lambda m, x, y: torch.cat(x.split(2, 1)[::-1], 1),
    "l2_norm": lambda m, x, y: x / (x.norm(dim=1, keepdim=True) + 1e-10) * m.gain,
    "softmax": lambda m, x, y: x.softmax(1),
    "silu": lambda m, x, y: F.silu(x) * F.leaky_relu(y, 0.1),
    "relu6": lambda m, x, y: F.relu6(x) + F.hardswish(y),
    "elu": lambda m, x, y: F.elu(x, 0.7) * F.hardsigmoid(y) + F.hardtanh(m.norm(y), -0.5, 2.0),
    "no_rule": lambda m, x, y: m.conv3x3(m, x.flip(3), y) + y,
}

# Calls without a block-sparse rule; the log says so.
DENSIFIED = {
    "conv1x1_padded",  # its output is larger than the frame
    "max_pool_2x2",
    "avg_pool_border_excluded",
    "bilinear_corners",
    "global_mean",  # the sigmoid of a single pixel
    "global_pool_upsampled",
    "large_windows",
    "uneven_cells",
    "no_rule",
}


# Upsampling needs sizes that stay aligned.
WHOLE_STRIDES = {
    "nearest",
    "nearest_x2",
    "bilinear_x2",
    "transposed_k4s2p1",
    "transposed_k2s2",
    "pyramid_cells",
}


@torch.no_grad()
@pytest.mark.parametrize("size,block_size,batch", [((64, 96), 32, 1), ((45, 71), 16, 2)])
@pytest.mark.parametrize("case", CASES)
def test_rule(case, size, block_size, batch):
    if case in WHOLE_STRIDES:
        size = tuple(extent + -extent % 8 for extent in size)
    module = Function(CASES[case]).eval()
    sparse, state = BlockSparseModule(module), StreamState()
    shape = (batch, *num_blocks(block_size, size))
    image = torch.randn(batch, 3, *size)
    full = BlockGrid.full(block_size=block_size, image_size=size, batch=batch)
    program = sparse.program((image,), {}, full)
    assert bool(program.densified) == (case in DENSIFIED), program.densified
    oracle = MaskedDenseOracle(module, (image,), unmasked=program.densified)
    for fraction in (1.0, 0.3, 0.7, 0.0, 0.1):
        image = torch.randn(batch, 3, *size)
        active = torch.rand(shape) < fraction
        grid = BlockGrid(active, block_size=block_size, image_size=size)
        with block_sparse(sparse, grid, state):
            found = sparse(image)
        expected = oracle((image,), grid)
        if grid.is_full:
            torch.testing.assert_close(expected, module(image), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_group_norm_is_exact_on_the_composite_map():
    """Large means, small variances: where sums of squares would cancel."""
    module = Function(lambda m, x, y: m.group_norm(x * 0.01 + 100)).eval()
    sparse, state = BlockSparseModule(module), StreamState()
    size = (40, 56)
    image = torch.randn(1, 3, *size)
    program = sparse.program((image,), {}, BlockGrid.full(block_size=8, image_size=size))
    assert not program.densified
    oracle = MaskedDenseOracle(module.double(), (image.double(),))
    module.float()
    for fraction in (1.0, 0.4, 0.4):
        image = torch.randn(1, 3, *size)
        grid = BlockGrid(torch.rand(1, 5, 7) < fraction, block_size=8, image_size=size)
        with block_sparse(sparse, grid, state), torch.no_grad():
            found = sparse(image)
        expected = oracle((image.double(),), grid).float()
        assert (found - expected).abs().max() < 2e-2


def test_cells_of_a_pool_are_not_taken_for_pixels_of_the_frame():
    """3 x 5 cells of this frame are as many as its pixels at stride 16, but cover other pixels."""
    module = Function(CASES["uneven_cells"]).eval()
    size = (45, 71)
    full = BlockGrid.full(block_size=16, image_size=size)
    program = BlockSparseModule(module).program((torch.randn(1, 3, *size),), {}, full)
    strides = [v.stride for v in program.values.values() if v.shape[-2:] == (3, 5)]
    assert strides and not any(strides)


def test_convolutions_without_a_rule_are_counted_unless_nothing_runs():
    module = Function(CASES["conv1x1_padded"]).eval()
    size = (64, 96)
    layout = {"block_size": 32, "image_size": size}
    program = BlockSparseModule(module).program(
        (torch.randn(1, 3, *size),), {}, BlockGrid.full(**layout)
    )
    dense = 32 * 48 * 6 * (3 * 9 + 3) + 17 * 25 * 6 * 6
    assert program.macs(BlockGrid.full(**layout)) == (dense, dense)
    assert program.macs(BlockGrid.empty(**layout)) == (0, dense)
