"""The policy network as Triton kernels: on the GPU if there is one, else interpreted."""

import copy
import itertools
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from blockcopy_d2.kernels.device import Device  # noqa: E402
from blockcopy_d2.policy import Observation, PolicyNetwork  # noqa: E402
from blockcopy_d2.policy import network as policy_network  # noqa: E402
from blockcopy_d2.policy.fused import FusedNetwork, draw, packing  # noqa: E402
from blockcopy_d2.policy.fused.padded_map import PaddedMap  # noqa: E402
from blockcopy_d2.policy.learned import draw_reference  # noqa: E402
from tests.kernels.compiled import compiled_by  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# For float32, which a GPU multiplies as TF32.
TOLERANCE = 1e-4 if DEVICE == "cpu" else 0.05


def gpu(num_sms):
    device = Device(DEVICE)
    device.num_sms = num_sms
    return device


def fuse(network, dtype=torch.float32, num_sms=1):
    return FusedNetwork(network, dtype=dtype, device=gpu(num_sms))


@pytest.fixture(autouse=True)
def poisoned():
    """Fills memory with NaN before it is written to."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def make(num_classes, pixels_per_block, pixel_std=(1.0, 1.0, 1.0)):
    """A network with norms and logits unlike the initial ones."""
    network = PolicyNetwork(
        num_classes=num_classes, pixels_per_block=pixels_per_block, pixel_std=pixel_std
    )
    shake(network)
    return network.to(DEVICE)


@torch.no_grad()
def shake(network):
    network.head[-1].weight.normal_(std=0.1)
    network.head[-1].bias.normal_()
    for norm in (m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_()


def observe(grid_shape, num_classes, pixels_per_block, streams=1):
    size = [pixels_per_block * blocks for blocks in grid_shape]
    frame, state = 50 * torch.randn(2, streams, 3, *size, device=DEVICE)
    # The brightness of streams differs, and with it their statistics.
    frame *= torch.arange(1.0, streams + 1, device=DEVICE).view(-1, 1, 1, 1)
    output = torch.rand(streams, num_classes, *size, device=DEVICE)
    grid = (torch.rand(streams, 1, *grid_shape, device=DEVICE) > 0.5).float()
    return Observation(frame, state.to(memory_format=torch.channels_last), output, grid, 1)


@torch.enable_grad()
def reference(network, observation):
    """Computes in single precision throughout."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return network(observation).detach()


@pytest.mark.parametrize(
    "grid_shape,num_classes,pixels_per_block,streams,num_sms,pack",
    [
        pytest.param((1, 1), 8, 32, 1, 1, None, marks=pytest.mark.slow),
        ((3, 1), 19, 8, 2, 1, (2, 128)),  # odd, several streams
        ((1, 2), 80, 8, 1, 64, None),  # many classes, and the tiles of a large GPU
        pytest.param((1, 3), 1, 8, 1, 1, (4, 64), marks=pytest.mark.slow),
    ],
)
def test_logits_are_those_of_the_layers(
    grid_shape, num_classes, pixels_per_block, streams, num_sms, pack, monkeypatch
):
    """`pack`: pixels that share a window, of up to so many channels. They do not divide widths."""
    if pack is not None:
        pixels, most = pack
        rule = lambda channels, stride: pixels if channels <= most else 1  # noqa: E731
        monkeypatch.setattr(packing, "_pixels", rule)
    network = make(num_classes, pixels_per_block)
    seen = observe(grid_shape, num_classes, pixels_per_block, streams)
    logits = fuse(network, num_sms=num_sms)(seen)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, reference(network, seen), atol=TOLERANCE, rtol=0)


def test_a_deeper_network():
    network = PolicyNetwork(num_classes=1, pixels_per_block=8, depth=20)
    shake(network)
    network.to(DEVICE)
    seen = observe((1, 2), 1, 8)
    logits = fuse(network)(seen)
    torch.testing.assert_close(logits, reference(network, seen), atol=TOLERANCE, rtol=0)


def test_in_half_precision():
    network, seen = make(8, 16), observe((1, 2), 8, 16)
    logits = fuse(network, torch.float16)(seen)
    torch.testing.assert_close(logits, reference(network, seen), atol=0.1, rtol=0)


@pytest.mark.skipif(DEVICE == "cuda", reason="TF32 does not have the digits")
def test_statistics_of_what_hardly_varies():
    """No digits cancel even if the mean of a map is thousands of its standard deviations."""
    network, seen = make(1, 8), observe((2, 2), 1, 8)
    seen.frame.mul_(1e-3).add_(120)
    seen.frame_state.fill_(-100)
    seen.output.fill_(0.5)
    seen.grid.fill_(1)
    logits = fuse(network)(seen)
    torch.testing.assert_close(logits, reference(network, seen), atol=0.02, rtol=0)


def test_follows_the_weights_and_copies():
    network, seen = make(1, 8), observe((1, 2), 1, 8)
    network._fused = fuse(network)
    before = network._fused(seen)
    copied = copy.deepcopy(network)
    shake(network)
    logits = [one._fused(seen) for one in (network, copied)]
    for found, one in zip(logits, (network, copied), strict=True):
        torch.testing.assert_close(found, reference(one, seen), atol=TOLERANCE, rtol=0)
    assert not logits[0].allclose(before, atol=0.1)
    assert logits[1].equal(before)  # bit for bit


def test_what_is_not_finite_reaches_the_logits_of_its_stream():
    network, seen = make(1, 8), observe((1, 1), 1, 8, streams=2)
    seen.frame[0, 1, 3, 3] = torch.nan
    logits = fuse(network, torch.float16)(seen)
    assert logits[0].isnan().all() and logits[1].isfinite().all()


@pytest.mark.parametrize("num_classes", [1, 19, 80])
@pytest.mark.parametrize("pixels_per_block", [8, 16, 32])
def test_windows_end_within_the_padded_map(num_classes, pixels_per_block):
    """The last window of a map reads, in whole steps, only from the map of its stream."""
    network = PolicyNetwork(num_classes=num_classes, pixels_per_block=pixels_per_block)
    convs = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    for conv in (conv for conv in convs if conv.kernel_size == (3, 3)):
        packed = packing.packing(conv)
        for height, width in itertools.product((1, 2, 3, 8, 64), repeat=2):
            rows, columns, channels = PaddedMap.empty(
                1, (height, width), packed.channels, like=torch.empty(0, device="meta")
            ).values.shape[1:]
            y = (height - 1) // packed.stride * packed.stride + 2
            x = (width - 1) // packed.stride // packed.pixels * packed.pixels * packed.stride
            last = (y * columns + x) * channels + packed.row - 1
            assert last < rows * columns * channels, (conv, height, width)


def test_hooks_of_layers_change_no_path(monkeypatch):
    """Counting the cost of a policy must not change it."""
    network, seen = make(1, 32), observe((1, 2), 1, 32)
    monkeypatch.setattr(policy_network, "triton_runs_on", lambda device: True)
    monkeypatch.setattr(network, "_fused_network", lambda: lambda observation: "fused")
    seen.frame = _OnCUDA()
    network.head[1].register_forward_hook(lambda *_: None)
    with torch.no_grad():
        assert network(seen) == "fused"


class _OnCUDA:
    device = torch.device("cuda")


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("grid_shape,streams", [((8, 16), 1), ((5, 7), 3)])
def test_on_a_gpu(grid_shape, streams, monkeypatch):
    network, seen = make(8, 32), observe(grid_shape, 8, 32, streams)
    want = reference(network, seen)
    with torch.no_grad():
        logits = network(seen)
        assert network._fused is not None
        torch.testing.assert_close(logits, want, atol=0.05, rtol=0)
        # cuDNN in half precision is hardly closer to single precision.
        monkeypatch.setattr(policy_network, "triton_runs_on", lambda device: False)
        layers = network(seen)
    assert (logits - want).square().mean() < 2 * (layers - want).square().mean() + 1e-6


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@torch.no_grad()
def test_a_recorded_graph_follows_the_weights():
    network, seen = make(8, 32), observe((8, 16), 8, 32)
    network(seen)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = network(seen)
    for _ in range(3):
        graph.replay()
        first = logits.clone()
        torch.testing.assert_close(first, reference(network, seen), atol=0.05, rtol=0)
        for _ in range(5):
            graph.replay()
            assert logits.equal(first)
        shake(network)
        seen.frame.normal_(std=50)


@pytest.mark.parametrize("capability", [90, pytest.param(80, marks=pytest.mark.slow)])
def test_compiles(capability):
    kernels = compiled_by("tests.policy.compiling", capability)
    layers = {"policy_convolution_kernel", "policy_normalization_kernel"}
    assert {kernel["name"] for kernel in kernels} == layers | {"inputs_kernel", "draw_kernel"}
    convolutions = [k for k in kernels if k["name"] == "policy_convolution_kernel"]
    normalizations = [k for k in kernels if k["name"] == "policy_normalization_kernel"]
    # Two of the ten convolutions share a kernel, and two of the nine normalizations.
    assert (len(convolutions), len(normalizations), len(kernels)) == (9, 8, 19)
    for kernel in kernels:
        assert kernel["shared_memory"] < 100 << 10
    assert all(kernel["tensor_cores"] for kernel in convolutions)


@pytest.mark.parametrize("shape", [(1, 8, 16), (4, 40, 33)])
def test_draws(shape):
    logits, uniform = 3 * torch.randn(shape, device=DEVICE), torch.rand(shape, device=DEVICE)
    # Leave out blocks where rounding decides.
    uniform = torch.where((uniform - logits.sigmoid()).abs() < 1e-5, 1.0, uniform)
    for value in (0.0, torch.nan, torch.inf, -torch.inf):
        logits[0, -1, -1] = value
        expected = draw_reference(logits.cpu(), uniform.cpu())
        assert torch.equal(draw(logits, uniform).cpu(), expected)
        assert expected[0].all() == (value != 0)
