"""BlockSparseModule: same weights, same names, and the same results outside of streams."""

import copy

import pytest
import torch
from torch import nn

from blockcopy_d2.sparse import BlockGrid, BlockSparseModule, StreamState, block_sparse
from blockcopy_d2.sparse.module import execution


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.down = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.register_buffer("scratch", torch.zeros(1), persistent=False)

    def forward(self, x):
        return {"fine": self.stem(x), "coarse": self.down(self.stem(x))}


def full(size=(32, 48), block_size=16):
    return BlockGrid.full(block_size=block_size, image_size=size)


@pytest.fixture
def net():
    return Net().eval()


def test_state_dict_has_the_names_of_the_wrapped_module(net):
    parent = nn.ModuleDict({"backbone": BlockSparseModule(net)})
    reference = nn.ModuleDict({"backbone": net})
    assert list(parent.state_dict()) == list(reference.state_dict())
    assert parent.state_dict()._metadata == reference.state_dict()._metadata
    assert parent.load_state_dict(reference.state_dict(), strict=True)
    assert [n for n, _ in parent.named_parameters()] == [n for n, _ in reference.named_parameters()]


@torch.no_grad()
def test_caches_are_never_saved(net):
    sparse, state = BlockSparseModule(net), StreamState()
    before = list(sparse.state_dict())
    with block_sparse(sparse, full(), state):
        sparse(torch.randn(1, 3, 32, 48))
    assert list(sparse.state_dict()) == before
    assert state.nbytes > 0


@torch.no_grad()
def test_unbound_is_the_dense_module(net):
    sparse = BlockSparseModule(net)
    image = torch.randn(1, 3, 32, 48)
    for key, value in net(image).items():
        assert torch.equal(sparse(image)[key], value)


@torch.no_grad()
def test_loading_weights_after_a_frame_takes_effect(net):
    sparse, state = BlockSparseModule(net), StreamState()
    image = torch.randn(1, 3, 32, 48)
    with block_sparse(sparse, full(), state):
        old = sparse(image)["coarse"].clone()
    parent = nn.ModuleDict({"backbone": sparse})
    weights = {key: torch.rand_like(value.float()) for key, value in parent.state_dict().items()}
    parent.load_state_dict(weights)
    with block_sparse(sparse, full(), state):
        new = sparse(image)["coarse"]
    assert not torch.allclose(new, old)
    torch.testing.assert_close(new, net(image)["coarse"])


@torch.no_grad()
def test_train_and_device_reach_the_wrapped_module(net):
    sparse = BlockSparseModule(net)
    sparse.train()
    assert net.training and net.stem.training
    sparse.eval()
    sparse.double()
    assert net.stem[0].weight.dtype == torch.float64
    image = torch.randn(1, 3, 32, 48, dtype=torch.float64)
    with block_sparse(sparse, full(), StreamState()):
        torch.testing.assert_close(sparse(image)["coarse"], net(image)["coarse"])


@torch.no_grad()
def test_deepcopy_is_independent(net):
    sparse = BlockSparseModule(net)
    other = copy.deepcopy(sparse)
    other.stem[0].weight.zero_()
    image = torch.randn(1, 3, 32, 48)
    assert torch.equal(sparse(image)["fine"], net(image)["fine"])
    assert not torch.equal(other(image)["fine"], net(image)["fine"])


def test_first_frame_must_be_full(net):
    grid = BlockGrid.empty(block_size=16, image_size=(32, 48))
    with block_sparse(BlockSparseModule(net), grid, StreamState()) as _:
        sparse = BlockSparseModule(net)
    with block_sparse(sparse, grid, StreamState()), pytest.raises(RuntimeError, match="all blocks"):
        sparse(torch.randn(1, 3, 32, 48))


def test_other_size_needs_a_full_frame(net):
    sparse, state = BlockSparseModule(net), StreamState()
    with block_sparse(sparse, full(), state):
        sparse(torch.randn(1, 3, 32, 48))
    grid = BlockGrid.empty(block_size=16, image_size=(48, 48))
    with block_sparse(sparse, grid, state), pytest.raises(RuntimeError, match="at this size"):
        sparse(torch.randn(1, 3, 48, 48))


def test_block_size_must_align_with_the_strides(net):
    sparse = BlockSparseModule(net)
    grid = full(size=(30, 45), block_size=15)
    with block_sparse(sparse, grid, StreamState()), pytest.raises(ValueError, match="15.*stride 2"):
        sparse(torch.randn(1, 3, 30, 45))


def test_grid_of_wrong_shape():
    with pytest.raises(ValueError, match=r"expected bool \(N, 2, 3\)"):
        BlockGrid(torch.ones(1, 3, 3, dtype=torch.bool), block_size=16, image_size=(32, 48))


def test_module_that_cannot_be_captured_runs_densely_and_says_so(caplog):
    class DataDependent(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum() > 0 else x

    sparse = BlockSparseModule(DataDependent().eval())
    image = torch.ones(1, 3, 32, 48)
    for _ in range(2):
        with block_sparse(sparse, full(), StreamState()):
            assert torch.equal(sparse(image), image * 2)
    assert sum("DataDependent runs densely" in record.message for record in caplog.records) == 1


@torch.no_grad()
def test_a_failing_frame_leaves_no_half_written_state(net, monkeypatch):
    sparse, state = BlockSparseModule(net), StreamState()
    image = torch.randn(1, 3, 32, 48)
    with block_sparse(sparse, full(), state):
        sparse(image)
    monkeypatch.setattr(torch, "addcmul", None)
    monkeypatch.setattr(torch.nn.functional, "conv2d", None)
    with block_sparse(sparse, full(), state), pytest.raises(TypeError):
        sparse(image)
    assert state.nbytes == 0


def test_backends(monkeypatch):
    image = torch.randn(1, 3, 32, 48)
    assert execution("auto", image) is execution("torch", image)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(RuntimeError, match="'triton'.*cpu.*BACKEND"):
        execution("triton", image)
    with pytest.raises(ValueError, match="'cuda'.*auto, triton, torch"):
        BlockSparseModule(Net().eval(), backend="cuda")


@torch.no_grad()
def test_macs_are_counted_when_they_are_asked_for(net):
    sparse, state = BlockSparseModule(net), StreamState()
    with block_sparse(sparse, full(), state) as frame:
        sparse(torch.randn(1, 3, 32, 48))
        assert len(frame.programs) == 1
    assert frame.macs == frame.dense_macs > 0


def test_densified_operators_are_named_once(caplog):
    class Flip(nn.Module):
        def forward(self, x):
            return x.flip(3)

    sparse, state = BlockSparseModule(Flip().eval()), StreamState()
    with caplog.at_level("INFO"):
        for _ in range(2):
            with block_sparse(sparse, full(), state):
                sparse(torch.randn(1, 3, 32, 48))
    assert [r.message for r in caplog.records if "flip" in r.message] == [
        "Flip: no block-sparse rule for flip; run on full feature maps."
    ]


def test_macs_are_those_of_the_executed_pixels():
    conv = nn.Conv2d(3, 8, 3, stride=2, padding=1).eval()
    sparse, state = BlockSparseModule(conv), StreamState()
    image = torch.randn(1, 3, 40, 48)
    with block_sparse(sparse, full((40, 48)), state) as frame:
        sparse(image)
    assert frame.macs == frame.dense_macs == 20 * 24 * 8 * 3 * 9
    active = torch.zeros(1, 3, 3, dtype=torch.bool)
    active[0, 0, 0] = active[0, 2, 1] = True  # the second is clipped to 8 x 16 pixels
    grid = BlockGrid(active, block_size=16, image_size=(40, 48))
    with block_sparse(sparse, grid, state) as frame:
        sparse(image)
    assert frame.macs == (8 * 8 + 4 * 8) * 8 * 3 * 9
