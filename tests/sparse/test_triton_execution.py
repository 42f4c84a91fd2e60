"""The Triton backend against the masked-dense oracle: the same rules and invariants as PyTorch's.

Without a GPU the kernels run in Triton's interpreter, so maps are tiny.
"""

import pytest
import torch

from blockcopy_d2.sparse import (
    BlockGrid,
    BlockSparseModule,
    MaskedDenseOracle,
    StreamState,
    block_sparse,
    num_blocks,
)
from blockcopy_d2.sparse.device_grid import DeviceGrid
from tests.sparse.networks import Network, build
from tests.sparse.test_networks import assert_equal, frames, grids, tensors
from tests.sparse.test_operators import CASES, Function

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
UPSAMPLED = ("nearest", "nearest_x2", "bilinear_x2", "transposed_k4s2p1", "transposed_k2s2")


@pytest.fixture(autouse=True)
def exact_products(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def poison(*modules):
    """Fills the memory that holds nothing between frames with NaN."""
    for module in modules:
        for program in module._programs.values():
            program.lowered.scratch.fill_(0xFF)


# Interpreted kernels are slow. Without a GPU only these are run, of operators that are cases of
# others.
OFTEN = (
    *("conv1x1_stride2", "conv3x3", "conv3x3_dilated6", "conv3x3_grouped", "conv7x7_stride2"),
    *("conv_asymmetric", "max_pool", "avg_pool_border_excluded", "nearest", "bilinear_x2"),
    *("bilinear_corners", "transposed_k4s2p1", "batch_norm_first", "conv_batch_norm_add_relu"),
    *("add_in_place", "group_norm_then_conv", "global_mean", "uneven_cells", "cat_then_conv"),
    *("split", "softmax", "silu", "no_rule"),
)


def often(case):
    interpreted = DEVICE == "cpu" and case not in OFTEN
    return pytest.param(case, marks=pytest.mark.slow) if interpreted else case


@torch.no_grad()
@pytest.mark.parametrize("case", map(often, CASES))
def test_rule(case):
    size, block_size, batch = (21, 41), 8, 2
    if case in UPSAMPLED:
        size = tuple(extent + -extent % 4 for extent in size)  # upsampled maps stay aligned
    module = Function(CASES[case]).eval().to(DEVICE)
    sparse, state = BlockSparseModule(module, backend="triton"), StreamState()
    shape = (batch, *num_blocks(block_size, size))
    image = torch.randn(batch, 3, *size, device=DEVICE)
    full = BlockGrid.full(block_size=block_size, image_size=size, batch=batch, device=DEVICE)
    program = sparse.program((image,), {}, full)
    oracle = MaskedDenseOracle(module, (image,), unmasked=program.densified)
    for fraction in (1.0, 0.3, 0.0, 0.7):
        image = torch.randn(batch, 3, *size, device=DEVICE)
        active = torch.rand(shape, device=DEVICE) < fraction
        grid = BlockGrid(active, block_size=block_size, image_size=size)
        with block_sparse(sparse, grid, state):
            found = sparse(image)
        torch.testing.assert_close(found, oracle((image,), grid), rtol=1e-4, atol=2e-5)
        poison(sparse)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("name", ["R50-FPN", "X101-FPN"])
def test_network(name):
    """Odd size, clipped blocks; all, some, one, most and no blocks."""
    model = build(name).to(DEVICE)
    network = Network(model, wrap=lambda module: BlockSparseModule(module, backend="triton"))
    state = StreamState()
    images = [image.to(DEVICE) for image in frames(model, (40, 75), 6)]
    size = tuple(images[0].shape[-2:])
    oracle = MaskedDenseOracle(Network(model), (images[0],))
    previous = None
    for image, grid in zip(images, grids(size, 32)):
        grid = BlockGrid(grid.active.to(DEVICE), block_size=32, image_size=size)
        with block_sparse(network, grid, state):
            outputs = network(image)
        poison(network.backbone, network.head)
        assert_equal(outputs, oracle((image,), grid))
        if grid.is_empty:
            assert all(torch.equal(one, other) for one, other in zip(tensors(outputs), previous))
        previous = [tensor.clone() for tensor in tensors(outputs)]


@torch.no_grad()
def test_device_grid_follows_its_active_blocks():
    """The same lists in the same memory for every frame, as a CUDA graph needs them."""
    size, module = (24, 40), Function(CASES["conv3x3_stride2"]).eval().to(DEVICE)
    sparse, state = BlockSparseModule(module, backend="triton"), StreamState()
    image = torch.randn(1, 3, *size, device=DEVICE)
    oracle = MaskedDenseOracle(module, (image,))
    grid = DeviceGrid.full(block_size=8, image_size=size, device=DEVICE)
    lists = grid.block_list(1)
    for fraction in (1.0, 0.4, 0.2):
        image.copy_(torch.randn_like(image))
        grid.active.copy_(torch.rand(grid.active.shape) < fraction)
        grid.compact()
        assert grid.block_list(1) is lists and lists.count.item() == grid.active.sum()
        with block_sparse(sparse, grid, state) as frame:
            found = sparse(image)
        torch.testing.assert_close(found, oracle((image.clone(),), grid), rtol=1e-4, atol=2e-5)
        later = grid.snapshot()
        assert frame.macs == sum(program.macs(later)[0] for program in frame.programs)


@torch.no_grad()
def test_lists_are_read_early_only_behind_another_launch():
    """The launch right after the one that makes the list of blocks has to wait for it."""
    first, second = (
        BlockSparseModule(torch.nn.Sequential(*convs).eval().to(DEVICE), backend="triton")
        for convs in (
            (torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 3, padding=1)),
            (torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 1)),
        )
    )
    image, state = torch.randn(1, 3, 16, 16, device=DEVICE), StreamState()

    def frame():
        grid = BlockGrid.full(block_size=8, image_size=(16, 16), device=DEVICE)
        with block_sparse(torch.nn.ModuleList([first, second]), grid, state):
            second(first(image))

    frame()
    settled = []

    def observed(launch):
        def run(blocks):
            settled.append(blocks.settled)
            launch(blocks)

        return run

    for caches in state.all_caches():
        caches.bound.steps = [(f, observed(launch)) for f, launch in caches.bound.steps]
    frame()
    # The image is copied first; the second module finds its input in the stream.
    assert settled == [True, True, False, True]
