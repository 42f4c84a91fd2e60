"""The Triton backend on a GPU: whole networks in every dtype, CUDA graphs, no host in the loop."""

import copy
import math

import pytest
import torch
from detectron2 import model_zoo
from detectron2.modeling import build_model

from blockcopy_d2.sparse import (
    BlockGrid,
    BlockSparseModule,
    MaskedDenseOracle,
    StreamState,
    block_sparse,
    num_blocks,
)
from tests.sparse.networks import Network, randomize
from tests.sparse.test_networks import tensors
from tests.sparse.test_operators import CASES, Function

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
    reason="needs an NVIDIA GPU of compute capability 8.0",
)

SIZE, BLOCK_SIZE = (512, 1024), 128


@pytest.fixture(scope="module")
def model():
    """Mask R-CNN R50-FPN at its own width, weights random."""
    cfg = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "cuda"
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    randomize(model)
    return model


def sparse(model):
    return Network(model, wrap=lambda module: BlockSparseModule(module, backend="triton"))


def actives():
    generator = torch.Generator().manual_seed(0)
    shape = (1, *num_blocks(BLOCK_SIZE, SIZE))
    for fraction in (1.0, 0.3, 0.05, 0.7, 0.0, 0.1):
        yield (torch.rand(shape, generator=generator) < fraction).cuda()


def relative_errors(found, expected):
    return [
        ((one.double() - other.double()).norm() / other.double().norm()).item()
        for one, other in zip(tensors(found), tensors(expected))
    ]


def run(network, state, image, active):
    grid = BlockGrid(active, block_size=BLOCK_SIZE, image_size=SIZE)
    with block_sparse(network, grid, state):
        return network(image)


@torch.no_grad()
def test_float32_network_matches_the_oracle(model, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    image = torch.randn(1, 3, *SIZE, device="cuda")
    oracle = MaskedDenseOracle(Network(model), (image,))
    network, state = sparse(model), StreamState()
    for active in actives():
        image = torch.randn_like(image)
        expected = oracle((image,), BlockGrid(active, block_size=BLOCK_SIZE, image_size=SIZE))
        found = run(network, state, image, active)
        assert max(relative_errors(found, expected)) < 2e-5


@torch.no_grad()
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["tf32", "float16", "bfloat16"]
)
def test_reduced_precision_is_as_good_as_cudnn(model, monkeypatch, dtype):
    """Through a deep network of random weights errors grow; the library's own are the measure."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    image = torch.randn(1, 3, *SIZE, device="cuda")
    exact = MaskedDenseOracle(Network(model), (image,))
    images = [torch.randn_like(image) for _ in actives()]
    expected = []
    for image, active in zip(images, actives()):
        grid = BlockGrid(active, block_size=BLOCK_SIZE, image_size=SIZE)
        expected.append([tensor.clone() for tensor in tensors(exact((image,), grid))])
    model.to(dtype)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", dtype == torch.float32)
    try:
        cudnn = MaskedDenseOracle(Network(model), (image.to(dtype),))
        network, state = sparse(model), StreamState()
        for image, active, truth in zip(images, actives(), expected):
            grid = BlockGrid(active, block_size=BLOCK_SIZE, image_size=SIZE)
            found = relative_errors(run(network, state, image.to(dtype), active), truth)
            reference = relative_errors(cudnn((image.to(dtype),), grid), truth)
            ratios = [own / other for own, other in zip(found, reference)]
            if dtype == torch.float32:
                # Rounding errors of both differ by a third from output to output and from seed to
                # seed; over all outputs they even out.
                assert math.hypot(*ratios) <= 1.1 * len(ratios) ** 0.5, ratios
                features = found[: len(found) // 3]  # two outputs of the RPN for each
                assert max(features) <= 1e-3, features
            else:
                assert max(ratios) <= 1.1, ratios
    finally:
        model.float()


@torch.no_grad()
@pytest.mark.parametrize(
    "dtype,tolerance",
    [(torch.float32, 2e-3), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)],
    ids=["tf32", "float16", "bfloat16"],
)
@pytest.mark.parametrize("case", CASES)
def test_rule_at_reduced_precision(case, dtype, tolerance, monkeypatch):
    size, block_size, batch = (84, 164), 32, 2
    module = Function(CASES[case]).eval().cuda()
    reduced = copy.deepcopy(module).to(dtype)
    network, state = BlockSparseModule(reduced, backend="triton"), StreamState()
    shape = (batch, *num_blocks(block_size, size))
    image = torch.randn(batch, 3, *size, device="cuda")
    grid = BlockGrid.full(block_size=block_size, image_size=size, batch=batch, device="cuda")
    densified = network.program((image.to(dtype),), {}, grid).densified
    oracle = MaskedDenseOracle(module, (image,), unmasked=densified)
    for fraction in (1.0, 0.3, 0.0, 0.7):
        image = torch.randn_like(image).to(dtype)
        active = torch.rand(shape, device="cuda") < fraction
        grid = BlockGrid(active, block_size=block_size, image_size=size)
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
        with block_sparse(network, grid, state):
            found = network(image)
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        assert max(relative_errors(found, oracle((image.float(),), grid))) < tolerance


@torch.no_grad()
def test_one_graph_serves_every_grid(model):
    from blockcopy_d2.sparse.device_grid import DeviceGrid

    network, eager, state = sparse(model), StreamState(), StreamState()
    images = [torch.randn(1, 3, *SIZE, device="cuda") for _ in actives()]
    expected = [
        [tensor.clone() for tensor in tensors(run(network, eager, image, active))]
        for image, active in zip(images, actives())
    ]
    grid = DeviceGrid.full(block_size=BLOCK_SIZE, image_size=SIZE, device="cuda")
    image = images[0].clone()
    with block_sparse(network, grid, state):
        network(image)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        grid.compact()
        with block_sparse(network, grid, state):
            outputs = network(image)
    for _ in range(2):  # a second clip through the same graph starts with all blocks again
        for new, active, truth in zip(images, actives(), expected):
            image.copy_(new)
            grid.active.copy_(active)
            graph.replay()
            assert all(torch.equal(one, other) for one, other in zip(tensors(outputs), truth))


@torch.no_grad()
def test_the_host_never_waits_and_warm_frames_allocate_nothing(model):
    from blockcopy_d2.sparse.device_grid import DeviceGrid

    network, state = sparse(model), StreamState()
    grid = DeviceGrid.full(block_size=BLOCK_SIZE, image_size=SIZE, device="cuda")
    image = torch.randn(1, 3, *SIZE, device="cuda")
    with block_sparse(network, grid, state):
        network(image)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        grid.active.random_(0, 2)
        grid.compact()
        with block_sparse(network, grid, state):
            network(image)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@torch.no_grad()
def test_every_frame_sees_its_own_blocks():
    """Kernels read how many blocks are active before those in front have ended: against a stream
    whose kernels wait, in many frames without a pause, of few and of all blocks."""
    convs = [torch.nn.Conv2d(32, 32, 3, padding=1) for _ in range(6)]
    module = torch.nn.Sequential(*convs).eval().cuda().half()
    network = BlockSparseModule(module, backend="triton")
    image = torch.randn(1, 32, 128, 256, device="cuda", dtype=torch.half)
    early, waiting = StreamState(), StreamState()
    shape = (1, *num_blocks(16, image.shape[2:]))
    different = torch.zeros((), dtype=torch.bool, device="cuda")
    for number in range(500):
        image.normal_()
        fraction = 1.0 if number == 0 else (0.02, 0.9, 0.3, 1.0)[number % 4]
        active = torch.rand(shape, device="cuda") < fraction
        outputs = []
        for state in (early, waiting):
            grid = BlockGrid(active, block_size=16, image_size=tuple(image.shape[2:]))
            with block_sparse(network, grid, state):
                outputs.append(network(image))
            if number == 0:
                (caches,) = state.all_caches()
                assert caches.bound.first_settled == 0 and len(caches.bound.steps) == len(convs)
                if state is waiting:
                    caches.bound.first_settled = len(convs)
        different |= (outputs[0] != outputs[1]).any()
    assert not different
