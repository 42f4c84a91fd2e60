"""The invariants of block-sparse execution, for Detectron2's networks.

All blocks active is the stock network; any active set is the masked-dense oracle; no block active
is the previous output, bit for bit; interleaved streams do not mix.
"""

import pytest
import torch
import torch.utils._pytree as pytree
from detectron2.structures import ImageList

from blockcopy_d2.sparse import (
    BlockGrid,
    BlockSparseModule,
    MaskedDenseOracle,
    StreamState,
    block_sparse,
    num_blocks,
)
from tests.sparse.networks import ZOO, Network, build

TOLERANCE = 2e-5


def tensors(outputs):
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]


def assert_equal(found, expected, tolerance=TOLERANCE):
    found, expected = tensors(found), tensors(expected)
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        assert one.shape == other.shape
        assert torch.isfinite(one).all(), "stale or unwritten features were read"
        assert (one - other).norm() <= tolerance * other.norm().clamp(min=1e-6)


def frames(model, size, count, batch=1):
    """Images of `size`, padded as Detectron2 pads them for this backbone."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        images = [torch.randn(3, *size, generator=generator) for _ in range(batch)]
        yield ImageList.from_tensors(images, model.backbone.size_divisibility).tensor


def grids(size, block_size, batch=1):
    """All, some, one, most and no blocks active, after a full first frame."""
    generator = torch.Generator().manual_seed(2)
    shape = (batch, *num_blocks(block_size, size))
    one = torch.zeros(shape, dtype=torch.bool)
    one[..., -1, -1] = True
    actives = [
        torch.ones(shape, dtype=torch.bool),
        torch.rand(shape, generator=generator) < 0.3,
        one,
        torch.rand(shape, generator=generator) < 0.9,
        torch.zeros(shape, dtype=torch.bool),
        torch.rand(shape, generator=generator) < 0.5,
    ]
    return [BlockGrid(active, block_size=block_size, image_size=size) for active in actives]


def check_network(name, size, block_size, batch=1):
    check_model(build(name), size, block_size, batch)


@torch.no_grad()
def check_model(model, size, block_size, batch=1):
    """All the invariants of one stream, for the block-sparse part of a Detectron2 model."""
    dense = Network(model)
    sparse = Network(model, wrap=BlockSparseModule)
    state = StreamState()
    images = list(frames(model, size, 6, batch))
    padded = tuple(images[0].shape[-2:])
    oracle = MaskedDenseOracle(dense, (images[0],))
    previous = None
    for image, grid in zip(images, grids(padded, block_size, batch)):
        with block_sparse(sparse, grid, state) as frame:
            outputs = sparse(image)
        assert_equal(outputs, oracle((image,), grid))
        assert 0 <= frame.macs <= frame.dense_macs
        if grid.is_full:
            assert_equal(outputs, dense(image))
            assert frame.macs == frame.dense_macs > 0
        if grid.is_empty:
            assert frame.macs == 0
            for one, other in zip(tensors(outputs), previous):
                assert torch.equal(one, other)
        previous = [tensor.clone() for tensor in tensors(outputs)]


# Their operators occur in other networks: one block size is enough.
_ALIKE = ("R50-FPN", "R50-C4", "R50-DC5", "X101-FPN", "RetinaNet")


def often(name, *values, slow=True):
    """Parameters of a test that is slow for networks like others."""
    marks = pytest.mark.slow if slow and name in _ALIKE else ()
    return pytest.param(name, *values, marks=marks)


# One size of blocks for each, the smallest and the largest for one; R50-FPN is below.
_OFTEN = {*(("R18-FPN", size) for size in (32, 128))}
_OFTEN |= {(name, 64) for name in ZOO if name not in ("R18-FPN", "R50-FPN")}


@pytest.mark.parametrize(
    "name, block_size",
    [
        pytest.param(*case, marks=() if case in _OFTEN else pytest.mark.slow)
        for case in ((name, size) for name in ZOO for size in (32, 64, 128))
    ],
)
def test_matches_oracle(name, block_size):
    check_network(name, (333, 517), block_size)


@pytest.mark.parametrize(
    "name",
    # Oracles compute full-size maps; smaller ones of all networks are above.
    [pytest.param(x, marks=pytest.mark.slow if x != "R18-FPN" else ()) for x in ZOO],
)
def test_matches_oracle_at_coco_size(name):
    check_network(name, (800, 1333), 128)


@pytest.mark.parametrize("name", [often(name) for name in ZOO])
def test_batch_of_two_streams(name):
    check_network(name, (224, 357), 64, batch=2)


@torch.no_grad()
@pytest.mark.parametrize("name", ["R18-FPN", "R50-C4", "SemanticFPN"])
def test_interleaved_streams_equal_streams_one_by_one(name):
    model = build(name)
    network = Network(model, wrap=BlockSparseModule)
    images = list(frames(model, (160, 224), 8))
    size = tuple(images[0].shape[-2:])
    streams = {"a": images[:4], "b": images[4:]}

    def run(order):
        states = {stream: StreamState() for stream in streams}
        outputs = {stream: [] for stream in streams}
        for stream, index in order:
            with block_sparse(network, grids(size, 32)[index], states[stream]):
                found = network(streams[stream][index])
            outputs[stream].append([tensor.clone() for tensor in tensors(found)])
        return outputs

    one_by_one = run([(stream, index) for stream in "ab" for index in range(4)])
    interleaved = run([(stream, index) for index in range(4) for stream in "ab"])
    for stream in streams:
        for found, expected in zip(interleaved[stream], one_by_one[stream]):
            assert all(torch.equal(one, other) for one, other in zip(found, expected))


@torch.no_grad()
def test_batch_equals_streams_alone():
    model = build("SemanticFPN")
    network = Network(model, wrap=BlockSparseModule)
    size, block_size = (128, 192), 32
    batch_grids = grids(size, block_size, batch=2)
    images = list(frames(model, size, len(batch_grids), batch=2))
    state, alone = StreamState(), [StreamState(), StreamState()]
    for image, grid in zip(images, batch_grids):
        with block_sparse(network, grid, state):
            together = tensors(network(image))
        for stream in range(2):
            own = BlockGrid(
                grid.active[stream : stream + 1], block_size=block_size, image_size=size
            )
            with block_sparse(network, own, alone[stream]):
                single = tensors(network(image[stream : stream + 1]))
            assert_equal([tensor[stream : stream + 1] for tensor in together], single)


@torch.no_grad()
def test_rpn_head_reads_the_backbone_features_in_place():
    model = build("R18-FPN")
    network = Network(model, wrap=BlockSparseModule)
    size = (128, 192)
    grid = grids(size, 64)[0]
    apart, together = StreamState(), StreamState()
    image = next(frames(model, size, 1))
    with block_sparse(network, grid, together):
        network(image)
    with block_sparse(network.backbone, grid, apart):
        network.backbone(image)
    fpn = sum(16 * 4 * (128 // s) * (192 // s) for s in (4, 8, 16, 32, 64))
    heads = sum(15 * 4 * (128 // s) * (192 // s) for s in (4, 8, 16, 32, 64))
    added = together.nbytes - apart.nbytes
    assert added < heads + 0.1 * fpn, "the head keeps copies of the feature maps it reads"
