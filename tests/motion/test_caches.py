"""
Moving the caches of streams, on both backends: blocks that do not run are the moved oracle's; with
everything still nothing changes; a picture that moves by whole pixels takes its maps along.
"""

import importlib.util

import pytest
import torch

from blockcopy_d2.motion import CacheMover, zero_field
from blockcopy_d2.sparse import BlockGrid, BlockSparseModule, StreamState, block_sparse, num_blocks
from tests.motion.moving import MovingOracle, some_field
from tests.sparse.networks import Network, build
from tests.sparse.test_networks import assert_equal, frames, grids, tensors
from tests.sparse.test_operators import CASES, WHOLE_STRIDES, Function

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRITON = pytest.param(
    "triton", marks=pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="no triton")
)
BACKENDS = ["torch", TRITON]


@pytest.fixture(autouse=True)
def exact_products(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("case", CASES)
def test_operators(case):
    for maps in ("outputs", "all"):
        check_operator(case, "torch", maps, fractions=(1.0, 0.3, 0.0, 0.6))


# Interpreted kernels are slow, and maps of most operators move alike. Always run: operators with
# maps of several strides, a shared map, statistics, or no rule.
_OFTEN = ("conv3x3_stride2", "cat_then_conv", "group_norm_then_conv", "no_rule")


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="no triton")
@pytest.mark.parametrize(
    "case", [x if x in _OFTEN else pytest.param(x, marks=pytest.mark.slow) for x in CASES]
)
def test_operators_of_triton(case):
    check_operator(case, "triton", "all", fractions=(1.0, 0.4, 0.0))


@torch.no_grad()
def check_operator(case, backend, maps, fractions):
    size, block_size, batch = (21, 41), 8, 2
    if case in WHOLE_STRIDES:
        size = tuple(extent + -extent % 8 for extent in size)
    module = Function(CASES[case]).eval().to(DEVICE)
    shape = (batch, *num_blocks(block_size, size))
    sparse, state = BlockSparseModule(module, backend=backend), StreamState()
    image = torch.randn(batch, 3, *size, device=DEVICE)
    full = BlockGrid.full(block_size=block_size, image_size=size, batch=batch, device=DEVICE)
    options = {"cell_size": 4, "maps": maps, "max_stride": 8}
    mover, oracle = CacheMover(**options), MovingOracle(module, image, full, **options)
    # An output larger than the frame is not a map of it.
    assert oracle.moved or maps == "outputs"
    for fraction in fractions:
        image = torch.randn(batch, 3, *size, device=DEVICE)
        active = torch.rand(shape, device=DEVICE) < fraction
        grid = BlockGrid(active, block_size=block_size, image_size=size)
        field = some_field(size, 4, batch, DEVICE)
        mover(state, grid, field)
        with block_sparse(sparse, grid, state):
            found = sparse(image)
        expected = oracle(image, grid, field)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "name, maps, min_stride",
    [
        ("R18-FPN", "all", 8),
        ("R50-C4", "outputs", 1),
        ("SemanticFPN", "all", 1),
        # Cases above move all maps of each operator.
        pytest.param("R18-FPN", "outputs", 1, marks=pytest.mark.slow),
        pytest.param("R18-FPN", "all", 1, marks=pytest.mark.slow),
        pytest.param("R50-C4", "all", 1, marks=pytest.mark.slow),
        pytest.param("R50-C4", "all", 8, marks=pytest.mark.slow),
        pytest.param("SemanticFPN", "outputs", 1, marks=pytest.mark.slow),
        pytest.param("SemanticFPN", "all", 8, marks=pytest.mark.slow),
    ],
)
def test_networks(name, maps, min_stride):
    model = build(name)
    images = list(frames(model, (101, 165), 6))
    size = tuple(images[0].shape[-2:])
    sparse, state = Network(model, wrap=BlockSparseModule), StreamState()
    options = {"cell_size": 16, "maps": maps, "min_stride": min_stride, "max_stride": 32}
    mover, all_grids = CacheMover(**options), grids(size, 32)
    oracle = MovingOracle(Network(model), images[0], all_grids[0], **options)
    for image, grid in zip(images, all_grids):
        field = some_field(size, 16)
        mover(state, grid, field)
        with block_sparse(sparse, grid, state):
            outputs = sparse(image)
        assert_equal(outputs, oracle(image, grid, field), 1e-4)


def test_maps_inside_that_are_too_fine_and_maps_that_are_too_coarse_stay_in_place():
    model = build("R18-FPN")
    sparse, image = Network(model, wrap=BlockSparseModule), next(frames(model, (64, 64), 1))
    state = StreamState()
    with torch.no_grad(), block_sparse(sparse, grids((64, 64), 32)[0], state):
        sparse(image)
    strides = {
        name: {moved.stride for moved, _ in CacheMover(cell_size=16, **options)._maps_of(state)}
        for name, options in {
            "all": {"maps": "all"},
            "coarse": {"maps": "all", "min_stride": 8},
            "outputs": {"maps": "outputs"},
            "fine": {"maps": "all", "max_stride": 16},
        }.items()
    }
    assert strides["all"] == {2, 4, 8, 16, 32, 64}
    assert strides["coarse"] == strides["outputs"] == {4, 8, 16, 32, 64}
    assert strides["fine"] == {2, 4, 8, 16}
    sizes = [CacheMover(cell_size=16, maps="all", min_stride=s).nbytes(state) for s in (1, 8, 128)]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3
    assert sizes[-1] == CacheMover(cell_size=16, maps="outputs").nbytes(state)


@torch.no_grad()
@pytest.mark.parametrize("maps", ["outputs", "all"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_still_pictures_are_as_without_motion_bit_for_bit(backend, maps):
    module = Function(CASES["conv3x3_stride2"]).eval().to(DEVICE)
    sparse = BlockSparseModule(module, backend=backend)
    size, mover = (21, 35), CacheMover(cell_size=8, maps=maps)
    states = StreamState(), StreamState()
    for grid in grids(size, 16)[:3]:
        grid = BlockGrid(grid.active.to(DEVICE), block_size=16, image_size=size)
        image, found = torch.randn(1, 3, *size, device=DEVICE), []
        mover(states[0], grid, zero_field(size, 8, device=DEVICE))
        for state in states:
            with block_sparse(sparse, grid, state):
                found.append(sparse(image))
        assert torch.equal(*found)


@torch.no_grad()
@pytest.mark.parametrize("shift", [(8, 0), (-8, 16), (0, -24)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_whole_cells_take_the_maps_along_bit_for_bit(backend, shift):
    module = Function(lambda m, x, y: (m.conv3x3(m, x, y), y)).eval().to(DEVICE)
    sparse, state = BlockSparseModule(module, backend=backend), StreamState()
    layout = {"block_size": 16, "image_size": (32, 48), "device": DEVICE}
    with block_sparse(sparse, BlockGrid.full(**layout), state):
        before = [x.clone() for x in sparse(torch.randn(1, 3, 32, 48, device=DEVICE))]
    dx, dy = shift
    field = zero_field((32, 48), 8, device=DEVICE)
    field[:, 0], field[:, 1] = dx, dy
    grid = BlockGrid.empty(**layout)
    CacheMover(cell_size=8, maps="all")(state, grid, field)
    with block_sparse(sparse, grid, state):
        after = sparse(torch.randn(1, 3, 32, 48, device=DEVICE))
    for old, new in zip(before, after, strict=True):
        stride = 32 // old.shape[-2]
        y = (torch.arange(old.shape[-2]) + dy // stride).clamp(0, old.shape[-2] - 1)
        x = (torch.arange(old.shape[-1]) + dx // stride).clamp(0, old.shape[-1] - 1)
        assert torch.equal(new, old[:, :, y][:, :, :, x])
        assert not torch.equal(new, old)


@torch.no_grad()
@pytest.mark.parametrize("backend", BACKENDS)
def test_still_cells_keep_their_bits_beside_moving_ones(backend):
    module = Function(lambda m, x, y: x).eval().to(DEVICE)
    sparse, state = BlockSparseModule(module, backend=backend), StreamState()
    layout = {"block_size": 16, "image_size": (32, 48), "device": DEVICE}
    with block_sparse(sparse, BlockGrid.full(**layout), state):
        before = sparse(torch.randn(1, 3, 32, 48, device=DEVICE)).clone()
    field = zero_field((32, 48), 8, device=DEVICE)
    field[..., 3:] = 2.7
    CacheMover(cell_size=8)(state, BlockGrid.empty(**layout), field)
    with block_sparse(sparse, BlockGrid.empty(**layout), state):
        after = sparse(torch.randn(1, 3, 32, 48, device=DEVICE))
    assert torch.equal(after[..., :12], before[..., :12])
    assert (after[..., 12:] != before[..., 12:]).float().mean() > 0.9


@torch.no_grad()
@pytest.mark.parametrize("backend", BACKENDS)
def test_vectors_that_are_not_finite_count_as_still(backend):
    module = Function(lambda m, x, y: x).eval().to(DEVICE)
    sparse, state = BlockSparseModule(module, backend=backend), StreamState()
    layout = {"block_size": 16, "image_size": (32, 48), "device": DEVICE}
    with block_sparse(sparse, BlockGrid.full(**layout), state):
        before = sparse(torch.randn(1, 3, 32, 48, device=DEVICE)).clone()
    field = zero_field((32, 48), 8, device=DEVICE).fill_(torch.nan)
    field[:, 0] = torch.inf
    CacheMover(cell_size=8)(state, BlockGrid.empty(**layout), field)
    with block_sparse(sparse, BlockGrid.empty(**layout), state):
        assert torch.equal(sparse(before.new_zeros(1, 3, 32, 48)), before)


@torch.no_grad()
def test_fields_and_options_that_do_not_fit_are_named():
    grid = BlockGrid.full(block_size=16, image_size=(32, 48))
    mover = CacheMover(cell_size=8)
    with pytest.raises(ValueError, match=r"\(1, 2, 4, 5\).*expected.*\(1, 2, 4, 6\)"):
        mover(StreamState(), grid, torch.zeros(1, 2, 4, 5))
    with pytest.raises(ValueError, match="float64"):
        mover(StreamState(), grid, torch.zeros(1, 2, 4, 6).double())
    with pytest.raises(ValueError, match="multiple of the cell size"):
        CacheMover(cell_size=32)(StreamState(), grid, torch.zeros(1, 2, 1, 2))
    with pytest.raises(ValueError, match="power of two"):
        CacheMover(cell_size=12)
    with pytest.raises(ValueError, match="'some'"):
        CacheMover(cell_size=8, maps="some")


@torch.no_grad()
def test_streams_without_features_are_left_alone():
    state = StreamState()
    grid = BlockGrid.full(block_size=16, image_size=(32, 48))
    CacheMover(cell_size=8)(state, grid, torch.ones(1, 2, 4, 6))
    assert state.nbytes == 0


@torch.no_grad()
def test_what_reads_a_moved_map_elsewhere_reads_it_moved():
    """The maps of a backbone move once, though the head reads them too."""
    model = build("R18-FPN")
    network, state = Network(model, wrap=BlockSparseModule), StreamState()
    size = (128, 192)
    layout = {"block_size": 64, "image_size": size}
    image = next(frames(model, size, 1))
    with block_sparse(network, BlockGrid.full(**layout), state):
        before = [x.clone() for x in tensors(network(image)[0])]
    field = torch.zeros(1, 2, 8, 12)
    field[:, 0] = 64  # whole pixels of all maps
    for maps in ("outputs", "all"):
        mover = CacheMover(cell_size=16, maps=maps)
        mover(state, BlockGrid.empty(**layout), field)
        with block_sparse(network, BlockGrid.empty(**layout), state):
            after = [x.clone() for x in tensors(network(image)[0])]
        for old, new in zip(before, after, strict=True):
            moved = 64 * old.shape[-2] // size[0]
            assert torch.equal(new[..., : new.shape[-1] - moved], old[..., moved:])
        before = after


@pytest.mark.parametrize(
    "options", [{"maps": "some"}, {"cell_size": 7}, {"min_stride": 0}, {"max_stride": "16"}]
)
def test_settings_that_make_no_sense_are_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} is .* must be"):
        CacheMover(**{"cell_size": 8, **options})
