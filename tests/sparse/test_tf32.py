"""TF32 through many residual blocks, on tensor cores that cut off their factors, as emulated by the
interpreter: as near to the exact sums as a library that rounds every factor and no sum, but for the
last result, which is rounded for whoever reads it."""

import math

import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.modeling import build_model
from torch import nn
from torch.nn import functional as F

from blockcopy_d2.kernels.tf32 import round_tf32_reference
from blockcopy_d2.sparse import BlockGrid, BlockSparseModule, StreamState, block_sparse
from blockcopy_d2.sparse.triton_execution import LoweredForTriton
from tests.sparse.networks import Network, randomize
from tests.sparse.test_networks import tensors

interpreter = pytest.importorskip("triton.runtime.interpreter")
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="real tensor cores: tests/sparse/test_triton_cuda.py"
)

BLOCKS, CHANNELS = 10, 16
# To 10 bits: evenly spread within half of a unit, of which a value has 1024 to 2048.
LAST_ROUNDING = 2**-11 / math.sqrt(3) * 0.7


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.second = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x):
        return F.relu(self.second(F.relu(self.first(x))) + x)


class Rounded(torch.overrides.TorchFunctionMode):
    """Convolutions of rounded factors, summed and kept in float32."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (F.conv2d, torch.conv2d):
            args = (*map(round_tf32_reference, args[:2]), *args[2:])
        return function(*args, **(kwargs or {}))


@pytest.fixture
def tensor_cores(monkeypatch):
    product, lowered = interpreter.InterpreterBuilder.create_dot, LoweredForTriton.__init__

    def cut_off(factor):
        bits = factor.data.view(np.uint32) & np.uint32(0xFFFFE000)
        return interpreter.TensorHandle(bits.view(np.float32), factor.dtype)

    def create_dot(self, a, b, *args):
        return product(self, cut_off(a), cut_off(b), *args)

    def lower(self, *args):
        lowered(self, *args)
        self.precision = "tf32"

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
    monkeypatch.setattr(LoweredForTriton, "__init__", lower)


def errors(network, image, expected):
    """Errors of the kernels, and of rounded factors."""
    sparse, state = BlockSparseModule(network, backend="triton"), StreamState()
    grid = BlockGrid.full(block_size=16, image_size=tuple(image.shape[2:]))
    with block_sparse(sparse, grid, state):
        found = sparse(image)
    with Rounded():
        rounded = network(image)
    return [((x - expected).norm() / expected.norm()).item() for x in (found.double(), rounded)]


@torch.no_grad()
def test_sums_of_residual_blocks(tensor_cores, monkeypatch):
    torch.manual_seed(0)
    stem, *blocks = nn.Conv2d(3, CHANNELS, 3, padding=1), *(Residual() for _ in range(BLOCKS))
    network = nn.Sequential(stem, *blocks, nn.Conv2d(CHANNELS, CHANNELS, 1)).eval()
    image = torch.randn(1, 3, 16, 16)
    expected = network.double()(image.double())
    network.float()
    own, rounded = errors(network, image, expected)
    assert own < 1.1 * math.hypot(rounded, LAST_ROUNDING) < 1e-3
    # Rounded where they are written, sums lose more with every block.
    monkeypatch.setattr("blockcopy_d2.sparse.lowering._lifted_values", lambda *args: set())
    lossy, _ = errors(network, image, expected)
    assert lossy > 1.5 * rounded


@pytest.mark.slow
@torch.no_grad()
def test_a_detector(tensor_cores):
    """Mask R-CNN R50-FPN with its RPN head, weights random. Rounding is luckier for one library in
    some outputs, for the other in others, and otherwise with other weights: all of them count."""
    cfg = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "cpu"
    model = build_model(cfg).eval()
    randomize(model)
    size = (128, 256)
    image = torch.randn(1, 3, *size)
    exact = tensors(Network(model.double())(image.double()))
    with Rounded():
        rounded = tensors(Network(model.float())(image))
    network = Network(model, wrap=lambda module: BlockSparseModule(module, backend="triton"))
    grid = BlockGrid.full(block_size=64, image_size=size)
    with block_sparse(network, grid, StreamState()):
        found = tensors(network(image))
    ratios = [
        ((own - truth).norm() / (other - truth).norm()).item()
        for own, other, truth in zip(found, rounded, exact, strict=True)
    ]
    assert math.hypot(*ratios) <= 1.1 * len(ratios) ** 0.5, ratios
