"""CSP and MGAN as video models, from their BlockCopy configs at small widths."""

import copy

import pytest
import torch
from detectron2.modeling import GeneralizedRCNN, build_model
from torch import nn

from blockcopy_d2.config import base_config
from blockcopy_d2.engine import load_config
from blockcopy_d2.modeling import (
    CSP,
    BlockCopyBackbone,
    BlockCopyDenseHead,
    BlockCopyRPNHead,
    VideoStream,
)
from blockcopy_d2.resources import config_path
from blockcopy_d2.sparse import (
    BlockGrid,
    BlockSparseModule,
    MaskedDenseOracle,
    StreamState,
    block_sparse,
)
from tests.modeling.test_meta_arch import assert_same, frames
from tests.networks.csp.small import OPTS as SMALL_CSP
from tests.networks.mgan.small import OPTS as SMALL_MGAN
from tests.sparse.networks import randomize
from tests.sparse.test_networks import assert_equal

NETWORKS = {
    "csp": ("CityPersons/csp_R_50_blockcopy.yaml", SMALL_CSP),
    "mgan": ("CityPersons/mgan_VGG_16_blockcopy.yaml", SMALL_MGAN),
}


@pytest.fixture(scope="module", params=NETWORKS)
def models(request):
    """The video model of a config and the same detector without BlockCopy, of equal weights."""
    name, opts = NETWORKS[request.param]
    opts = [*opts, "MODEL.BLOCKCOPY.BLOCK_SIZE", "64", "TEST.DETECTIONS_PER_IMAGE", "10"]
    cfg = load_config(config_path(name), opts)
    stock = build_model(base_config(cfg)).eval()
    torch.manual_seed(1)
    randomize(stock)
    model = build_model(cfg)
    missing, unexpected = model.load_state_dict(stock.state_dict(), strict=False)
    assert not unexpected and all(key.startswith("policy.") for key in missing)
    return model, stock


def some_blocks(stream):
    grid = BlockGrid.empty(block_size=64, image_size=stream.canvas_size)
    active = grid.active.clone()
    active[..., 0, 1] = active[..., -1, 0] = True
    return BlockGrid(active, block_size=64, image_size=stream.canvas_size)


def test_what_runs_in_blocks(models):
    model, _ = models
    assert model.task.num_classes == 1
    assert isinstance(model.backbone, BlockCopyBackbone)
    blocks = {name for name, m in model.named_modules() if isinstance(m, BlockSparseModule)}
    if isinstance(model.base, CSP):
        assert isinstance(model.head, BlockCopyDenseHead)
        assert blocks == {"backbone", "head"}
    else:
        assert isinstance(model.base, GeneralizedRCNN)
        assert isinstance(model.proposal_generator.rpn_head, BlockCopyRPNHead)
        assert blocks == {"backbone", "proposal_generator.rpn_head"}


def test_all_blocks_are_the_detector_itself(models):
    model, stock = models
    stream = VideoStream()
    for inputs in frames(2):
        grid = None
        if stream.started:
            grid = BlockGrid.full(block_size=64, image_size=stream.canvas_size)
        with torch.no_grad():
            expected = stock([copy.deepcopy(inputs)])[0]
        result = model.step(inputs, stream, grid=grid)
        assert result.macs == result.dense_macs > 0
        assert_same(expected, result.output, exact=False)


def test_no_block_repeats_the_output(models):
    model, _ = models
    stream = VideoStream()
    first, *others = frames(3)
    expected = model.step(first, stream)
    for inputs in others:
        grid = BlockGrid.empty(block_size=64, image_size=stream.canvas_size)
        result = model.step(inputs, stream, grid=grid)
        assert result.macs == 0
        assert_same(expected.output, result.output)


def test_some_blocks_cost_their_share(models):
    model, _ = models
    stream = VideoStream()
    first, second = frames(2)
    model.step(first, stream)
    result = model.step(second, stream, grid=some_blocks(stream))
    assert result.macs / result.dense_macs == pytest.approx(result.grid.fraction, rel=0.25)
    assert model.information_gain(result).shape == (1, *result.grid.shape)


def test_interleaved_streams_do_not_mix(models):
    model, _ = models
    clips = {"a": frames(3), "b": frames(3)[::-1]}

    def run(order):
        streams = {name: VideoStream() for name in clips}
        outputs = {name: [] for name in clips}
        for name, index in order:
            grid = some_blocks(streams[name]) if index else None
            outputs[name].append(model.step(clips[name][index], streams[name], grid=grid).output)
        return outputs

    one_by_one = run([(name, index) for name in clips for index in range(3)])
    interleaved = run([(name, index) for index in range(3) for name in clips])
    for name in clips:
        for first, second in zip(one_by_one[name], interleaved[name], strict=True):
            assert_same(first, second)


def test_keys_are_the_detectors_and_video_leaves_its_weights_alone(models):
    model, stock = models
    before = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("policy.")}
    assert before.keys() == stock.state_dict().keys()
    for inputs in frames(3, video_id="weights"):
        assert len(model([inputs])[0]["instances"]) > 0
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_the_policy_sees_pedestrians(models):
    model, _ = models
    stream = VideoStream()
    first, second = frames(2)
    scores = model.step(first, stream).output["instances"].scores
    result = model.step(second, stream, learning=True)
    height, width = result.frame.shape[-2:]
    assert result.observation.output.shape == (1, 1, height, width)
    assert 0 < result.observation.output.max() <= scores.max()


def test_without_video_id_it_is_the_detector_itself(models):
    model, stock = models
    inputs = frames(2)
    with torch.no_grad():
        expected = stock(copy.deepcopy(inputs))
    for first, second in zip(expected, model(inputs), strict=True):
        assert_same(first, second)


@pytest.mark.slow
@torch.no_grad()
def test_kernels_match_the_oracle(models):
    """The same modules as Triton's kernels, in its interpreter where there is no GPU."""
    pytest.importorskip("triton")
    _, stock = models
    size, device = (64, 96), "cuda" if torch.cuda.is_available() else "cpu"
    whole = Convolutional(copy.deepcopy(stock)).to(device)
    sparse = Convolutional(copy.deepcopy(stock), wrap=kernels).to(device)
    image, state = torch.randn(1, 3, *size, device=device), StreamState()
    oracle = MaskedDenseOracle(whole, (image,))
    for fraction in (1.0, 0.4, 0.0):
        image = torch.randn_like(image)
        active = torch.rand(1, 2, 3, device=device) < fraction
        grid = BlockGrid(active, block_size=32, image_size=size)
        with torch.backends.cudnn.flags(allow_tf32=False), block_sparse(sparse, grid, state):
            found = sparse(image)
        assert_equal(found, oracle((image,), grid))


def kernels(module):
    return BlockSparseModule(module, backend="triton")


class Convolutional(nn.Module):
    """The part of a detector that runs in blocks, as one module."""

    def __init__(self, detector, wrap=lambda module: module):
        super().__init__()
        generator = getattr(detector, "proposal_generator", None)
        head = detector.head if generator is None else generator.rpn_head
        self.backbone, self.head = wrap(detector.backbone), wrap(head)
        self.names = detector.head_in_features if generator is None else generator.in_features

    def forward(self, image):
        features = self.backbone(image)
        return self.head([features[name] for name in self.names])
