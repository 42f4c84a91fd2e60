"""The invariants of block-sparse execution in bf16, that is under PyTorch's autocast on a CPU."""

import copy

import pytest
import torch
from torch import nn

from blockcopy_d2.sparse import (
    BlockGrid,
    BlockSparseModule,
    MaskedDenseOracle,
    StreamState,
    block_sparse,
    num_blocks,
)
from tests.sparse.networks import Network, build
from tests.sparse.test_networks import assert_equal, frames, grids, tensors
from tests.sparse.test_operators import CASES, WHOLE_STRIDES, Function

# bf16 keeps 8 bits; fused operators round once, those of the oracle several times.
OPERATOR_TOLERANCE = 1e-2
NETWORK_TOLERANCE = 4e-2


def floats(outputs):
    return [tensor.float() for tensor in tensors(outputs)]


def bf16():
    return torch.autocast("cpu", torch.bfloat16)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_rule(case):
    size, block_size = ((48, 72) if case in WHOLE_STRIDES else (45, 71)), 16
    module = Function(CASES[case]).eval()
    sparse, state = BlockSparseModule(module), StreamState()
    full = BlockGrid.full(block_size=block_size, image_size=size)
    image = torch.randn(1, 3, *size)
    with bf16():
        program = sparse.program((image,), {}, full)
    half = copy.deepcopy(module).bfloat16()
    oracle = MaskedDenseOracle(half, (image.bfloat16(),), unmasked=program.densified)
    for fraction in (1.0, 0.4, 0.0, 0.1):
        image = torch.randn(1, 3, *size)
        active = torch.rand(1, *num_blocks(block_size, size)) < fraction
        grid = BlockGrid(active, block_size=block_size, image_size=size)
        with bf16(), block_sparse(sparse, grid, state):
            found = sparse(image)
        assert all(tensor.dtype == torch.bfloat16 for tensor in tensors(found))
        expected = oracle((image.bfloat16(),), grid)
        assert_equal(floats(found), floats(expected), OPERATOR_TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("name", ["R18-FPN", "R50-C4", "SemanticFPN", "X101-FPN"])
def test_network(name):
    model = build(name)
    dense, sparse = Network(model), Network(model, wrap=BlockSparseModule)
    state, previous = StreamState(), None
    images = list(frames(model, (141, 205), 6))
    size = tuple(images[0].shape[-2:])
    oracle = MaskedDenseOracle(dense, (images[0],))
    for image, grid in zip(images, grids(size, 32)):
        with bf16(), block_sparse(sparse, grid, state):
            outputs = sparse(image)
        with bf16():
            expected = oracle((image,), grid)
            stock = dense(image) if grid.is_full else None
        assert_equal(floats(outputs), floats(expected), NETWORK_TOLERANCE)
        if grid.is_full:
            assert_equal(floats(outputs), floats(stock), NETWORK_TOLERANCE)
            assert [x.dtype for x in tensors(outputs)] == [x.dtype for x in tensors(stock)]
        if grid.is_empty:
            assert all(torch.equal(x, y) for x, y in zip(tensors(outputs), previous))
        previous = [tensor.clone() for tensor in tensors(outputs)]


@torch.no_grad()
def test_interleaved_streams_equal_streams_one_by_one():
    model = build("R18-FPN")
    network = Network(model, wrap=BlockSparseModule)
    images = list(frames(model, (96, 160), 8))
    size = tuple(images[0].shape[-2:])
    streams = {"a": images[:4], "b": images[4:]}

    def run(order):
        states = {stream: StreamState() for stream in streams}
        outputs = {}
        for stream, index in order:
            with bf16(), block_sparse(network, grids(size, 32)[index], states[stream]):
                found = network(streams[stream][index])
            outputs[stream, index] = [tensor.clone() for tensor in tensors(found)]
        return outputs

    one_by_one = run([(stream, index) for stream in "ab" for index in range(4)])
    interleaved = run([(stream, index) for index in range(4) for stream in "ab"])
    for key, expected in one_by_one.items():
        assert all(torch.equal(x, y) for x, y in zip(interleaved[key], expected))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        return self.norm(self.conv(x))


def full(size=(32, 48)):
    return BlockGrid.full(block_size=16, image_size=size)


@pytest.fixture
def net():
    net = Net().eval()
    net.norm.running_var.fill_(2.0)
    return net


@torch.no_grad()
def test_weights_stay_as_they_are_and_caches_take_half(net):
    before = copy.deepcopy(net.state_dict())
    sparse, single, half = BlockSparseModule(net), StreamState(), StreamState()
    image = torch.randn(1, 3, 32, 48)
    with block_sparse(sparse, full(), single):
        sparse(image)
    with bf16(), block_sparse(sparse, full(), half):
        sparse(image)
    assert single.nbytes == 2 * half.nbytes > 0
    for name, tensor in sparse.state_dict().items():
        assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name])


@torch.no_grad()
def test_a_normalization_is_folded_in_before_rounding(net):
    net.conv.weight.fill_(1 + 2**-9)
    net.norm.running_var.fill_((1 + 2**-9) ** 2 - net.norm.eps)
    sparse = BlockSparseModule(net)
    with bf16():
        program = sparse.program((torch.randn(1, 3, 32, 48),), {}, full())
    (convolution,) = program.operators
    assert convolution.weight.dtype == convolution.bias.dtype == torch.bfloat16
    assert torch.equal(convolution.weight, torch.ones_like(convolution.weight))


@torch.no_grad()
def test_loading_weights_takes_effect(net):
    sparse = BlockSparseModule(net)
    image = torch.randn(1, 3, 32, 48)
    with bf16(), block_sparse(sparse, full(), StreamState()):
        sparse(image)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in net.state_dict().items()}
    sparse.load_state_dict(zeros)
    with bf16(), block_sparse(sparse, full(), StreamState()):
        assert not sparse(image).any()


@torch.no_grad()
def test_a_stream_keeps_its_precision(net):
    sparse, state = BlockSparseModule(net), StreamState()
    image = torch.randn(1, 3, 32, 48)
    with bf16(), block_sparse(sparse, full(), state):
        sparse(image)
    grid = BlockGrid.empty(block_size=16, image_size=(32, 48))
    with block_sparse(sparse, grid, state), pytest.raises(RuntimeError, match="precision"):
        sparse(image)


@torch.no_grad()
def test_what_cannot_be_captured_runs_under_autocast_as_it_is():
    class DataDependent(Net):
        def forward(self, x):
            return super().forward(x) if x.sum() < 1e9 else x

    module = DataDependent().eval()
    sparse = BlockSparseModule(module)
    image = torch.randn(1, 3, 32, 48)
    with bf16(), block_sparse(sparse, full(), StreamState()):
        assert torch.equal(sparse(image), module(image))


@torch.no_grad()
def test_triton_follows_autocast(net):
    pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sparse, state = BlockSparseModule(net.to(device), backend="triton"), StreamState()
    oracle = MaskedDenseOracle(net, (torch.randn(1, 3, 32, 48, device=device),))
    for fraction in (1.0, 0.5):
        image = torch.randn(1, 3, 32, 48, device=device)
        active = torch.rand(1, 2, 3, device=device) < fraction
        grid = BlockGrid(active, block_size=16, image_size=(32, 48))
        with torch.autocast(device, torch.float16), block_sparse(sparse, grid, state):
            found = sparse(image)
        assert found.dtype == torch.float16
        assert_equal(found.float(), oracle((image,), grid), 2e-3)
