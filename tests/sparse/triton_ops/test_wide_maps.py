"""Kernels on maps whose last elements lie more than 2^31 elements behind the first."""

import pytest
import torch

pytest.importorskip("triton")

from blockcopy_d2.sparse.state import FeatureMap  # noqa: E402
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
from blockcopy_d2.sparse.triton_ops.conv import ConvolutionLaunch  # noqa: E402
from blockcopy_d2.sparse.triton_ops.conv_levels import ConvolutionLevel  # noqa: E402
from blockcopy_d2.sparse.triton_ops.conv_shape import (  # noqa: E402
    ConvolutionConfig,
    ConvolutionShape,
    convolution_reference,
    pack_weight,
)
from blockcopy_d2.sparse.triton_ops.copy import CopyLaunch  # noqa: E402
from blockcopy_d2.sparse.triton_ops.normalization import (  # noqa: E402
    StatisticsLaunch,
    statistics_reference,
)
from blockcopy_d2.sparse.triton_ops.partial_sums import Workspace, workspace_size  # noqa: E402
from blockcopy_d2.sparse.triton_ops.pool import PoolLaunch, pool_reference  # noqa: E402
from blockcopy_d2.sparse.triton_ops.resample import (  # noqa: E402
    UpsampleLaunch,
    upsample_reference,
)
from tests.kernels.far_memory import far_memory  # noqa: E402
from tests.sparse.triton_ops.maps import DEVICE, GPU, blocks_of, tiling_of  # noqa: E402

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="takes 17 GB on a GPU")

SIZE, CHANNELS, TILE = (4, 6), 16, 2
# Elements from a pixel to the next, so that 24 pixels reach beyond 2^31.
ROW = 2**27


@pytest.fixture
def wide_map(tmp_path):
    """Makes maps of a number of channels, all in one piece of memory."""
    memory = far_memory(tmp_path, (SIZE[0] * SIZE[1], ROW), torch.float16)
    taken = []

    def make(channels=CHANNELS, values=None):
        rows = memory[:, sum(taken) : sum(taken) + channels]
        taken.append(channels)
        result = FeatureMap.of_rows(rows, batch=1, size=SIZE)
        if values is not None:
            result.pixels.copy_(values.permute(0, 2, 3, 1))
        assert result.wide
        return result

    return make


@pytest.fixture
def blocks():
    active = torch.ones(1, SIZE[0] // TILE, SIZE[1] // TILE, dtype=torch.bool)
    return blocks_of(active), tiling_of(active, TILE)


def features(channels=CHANNELS, size=SIZE):
    return torch.randn(1, channels, *size).half()


def assert_close(found, expected):
    torch.testing.assert_close(found.as_nchw().float(), expected.float(), rtol=2e-2, atol=2e-2)


def narrow_map(values):
    result = FeatureMap(
        batch=1, channels=values.shape[1], size=values.shape[2:], dtype=values.dtype, device=DEVICE
    )
    result.pixels.copy_(values.permute(0, 2, 3, 1))
    return result


def test_copy(wide_map, blocks):
    x, out = features(), wide_map()
    CopyLaunch(out, blocks[1], device=GPU)(x, blocks[0])
    assert torch.equal(out.as_nchw(), x)


def test_copy_of_planes_far_apart(tmp_path, blocks):
    memory = far_memory(tmp_path, (3, 2**30), torch.uint8)
    x = memory[:, : SIZE[0] * SIZE[1]].view(1, 3, *SIZE)
    x.copy_(torch.randint(256, x.shape))
    out = narrow_map(torch.zeros(x.shape))
    CopyLaunch(out, blocks[1], device=GPU)(x, blocks[0])
    assert torch.equal(out.as_nchw(), x.float())


@pytest.mark.parametrize("kind", ["max", "avg"])
def test_pool(wide_map, blocks, kind):
    options = dict(kind=kind, kernel=(3, 3), stride=1, padding=(1, 1), dilation=(1, 1))
    x, out = features(), wide_map()
    PoolLaunch(wide_map(values=x), out, blocks[1], device=GPU, **options)(blocks[0])
    assert_close(out, pool_reference(x.float(), **options))


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_upsample(wide_map, blocks, mode):
    x, out = features(size=(2, 3)), wide_map()
    UpsampleLaunch(narrow_map(x), out, blocks[1], scale=2, mode=mode, device=GPU)(blocks[0])
    assert_close(out, upsample_reference(x.float(), scale=2, mode=mode))


def test_statistics(wide_map, blocks):
    x, options = features(), dict(groups=4, normalize=(None, None, 1e-5))
    kept = tuple(torch.empty(1, blocks[1].num_blocks, CHANNELS) for _ in range(2))
    launch = StatisticsLaunch(wide_map(values=x), blocks[1], kept, device=GPU, **options)
    launch(blocks[0])
    scale, shift = statistics_reference(x, **options)
    torch.testing.assert_close(launch.scale, scale, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(launch.shift, shift, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("config", [ConvolutionConfig(32, 16, 16), BoxConfig(16, 16, 16)])
def test_convolution(wide_map, blocks, config):
    channels, window = (CHANNELS, CHANNELS, 1), ((3, 3), 1, (1, 1), (1, 1))
    shape = ConvolutionShape(*channels, *window, residual_scale=1)
    x, residual, out = features(), features(), wide_map()
    weight, bias = torch.randn(CHANNELS, CHANNELS, 3, 3).half() / 12, torch.randn(CHANNELS).half()
    packed = pack_weight(weight, bias, shape, config)
    maps = (wide_map(values=x), out, packed, blocks[1], wide_map(values=residual))
    boxes = isinstance(config, BoxConfig)
    workspace = Workspace(workspace_size(config, GPU.num_sms), GPU.num_sms, DEVICE)
    launch = (BoxConvolutionLaunch if boxes else ConvolutionLaunch)(
        *(shape, config, [ConvolutionLevel(*maps)]),
        **dict(precision="ieee", workspace=workspace, device=GPU),
    )
    launch(blocks[0])
    operands = (part.float() for part in (x, weight, bias))
    assert_close(out, convolution_reference(*operands, shape, residual.float()))


def test_bottleneck(wide_map, blocks):
    shape = BottleneckShape(
        *(CHANNELS, 16, CHANNELS, 16),
        **dict(kernel=(3, 3), stride=1, padding=(1, 1), dilation=(1, 1)),
        **dict(middle_relu=True, relu=True, next_relu=True, residual=True),
    )
    x, residual, out, following = features(), features(), wide_map(), wide_map()
    sizes = (3, 1, 1)
    convolutions = [(torch.randn(16, 16, k, k).half() / 4 / k, torch.randn(16)) for k in sizes]
    BottleneckLaunch(
        *(shape, BottleneckConfig(16, 16, 16)),
        **dict(x=wide_map(values=x), residual=wide_map(values=residual)),
        **dict(out=out, following=following, weights=pack_bottleneck(*convolutions)),
        **dict(tiling=blocks[1], precision="ieee", device=GPU),
    )(blocks[0])
    exact = [(weight.float(), bias) for weight, bias in convolutions]
    want, opened = bottleneck_reference(x.float(), shape, exact, residual.float())
    assert_close(out, want)
    assert_close(following, opened)
