"""Pictures of the host and of the GPU become the same frames, and no frame waits for them."""

import numpy as np
import pytest
import torch

from blockcopy_d2.engine.defaults import load_config
from blockcopy_d2.engine.predictor import VideoPredictor
from blockcopy_d2.resources import config_path
from tests.small_model import CONFIG, small_model_opts

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


def build(folder, *opts):
    opts = [*small_model_opts(folder), "MODEL.BLOCKCOPY.ENABLED", True, *opts]
    cfg = load_config(config_path(CONFIG), [str(x) for x in [*opts, "MODEL.DEVICE", "cuda"]])
    torch.manual_seed(0)
    return VideoPredictor(cfg)


def frames(number, size=(96, 160)):
    still = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    for index in range(number):
        image = still.copy()
        image[20:60, 10 + 2 * index : 50 + 2 * index] = 255
        yield image


class Foreign:
    """A tensor of another library."""

    def __init__(self, tensor):
        self._tensor = tensor

    def __dlpack__(self, **options):
        return self._tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._tensor.__dlpack_device__()


def camera(number, kind):
    """Uses its memory again for every frame."""
    buffer = torch.empty(96, 160, 3, dtype=torch.uint8, device="cuda")
    planes = torch.empty(3, 96, 160, dtype=torch.uint8, device="cuda")
    array = np.empty((96, 160, 3), np.uint8)
    for image in frames(number):
        array[:] = image
        buffer.copy_(torch.from_numpy(image))
        planes.copy_(buffer.permute(2, 0, 1))
        yield {
            "array": array,
            "mirrored": array[:, ::-1].copy()[:, ::-1],
            "tensor": buffer,
            "planes": planes,
            "dlpack": Foreign(buffer),
        }[kind]


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("kind", ["array", "mirrored", "tensor", "planes", "dlpack"])
def test_the_network_gets_what_the_host_would_have_made(folder, kind, graph, monkeypatch):
    opts = ("MODEL.BLOCKCOPY.CUDA_GRAPH", graph, "MODEL.BLOCKCOPY.POLICY.NAME", "FrameDifference")
    predictor = build(folder, *opts)
    assert predictor.mapper.takes_tensors
    given, step_batch = [], predictor.model.step_batch

    def watched(inputs, *args, **options):
        given.append(inputs[0]["image"].clone())
        return step_batch(inputs, *args, **options)

    monkeypatch.setattr(predictor.model, "step_batch", watched)
    streamed = []
    for picture, result in predictor.stream(camera(8, kind)):
        picture[:] = 0  # Whoever gets it may draw on it.
        streamed.append(len(result["instances"]))
    called = [len(predictor(picture)["instances"]) for picture in camera(8, kind)]
    assert streamed == called and min(called) > 0
    for index, image in enumerate([*frames(8), *frames(8)]):
        expected = predictor.mapper(image)["image"]
        assert expected.shape == (3, 128, 213) and given[index].is_cuda
        assert torch.equal(given[index].cpu(), expected), index


def test_frames_come_back_as_they_were(folder):
    predictor = build(folder, "MODEL.BLOCKCOPY.POLICY.NAME", "NoBlocks")
    for kind, type_ in (("array", np.ndarray), ("planes", torch.Tensor)):
        pairs = list(predictor.stream(camera(6, kind)))
        for (found, _), expected in zip(pairs, frames(6), strict=True):
            assert isinstance(found, type_) and found.shape == (96, 160, 3)
            assert np.array_equal(torch.as_tensor(found).cpu().numpy(), expected)


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_a_warm_frame_waits_for_nothing(folder, kind):
    """
    Checks frames from picture to learner's step, with unread results and any reader of pictures.
    """
    predictor = build(folder)
    pictures = [x.copy() if kind == "array" else x.clone() for x in camera(40, kind)]
    stream = predictor.stream(pictures)
    # The learner's step of every fourth frame is captured the third time.
    for _ in range(20):
        next(stream)[1]["instances"]
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(12):
            image, result = next(stream)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(result["instances"]) == 5
    # Enough for a frame, its result, and those on their way.
    assert torch.cuda.memory_allocated() - before < 2**22
    stream.close()


def test_a_stream_of_ones_own_waits_for_pictures(folder):
    """The picture is read on another CUDA stream than the frame is run on."""
    predictor = build(folder, "MODEL.BLOCKCOPY.POLICY.NAME", "AllBlocks")
    own = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(own):
        expected = [r["instances"].scores for _, r in predictor.stream(camera(6, "array"))]
        found = []
        for _, result in predictor.stream(camera(6, "tensor")):
            torch.cuda._sleep(1_000_000)
            found.append(result["instances"].scores)
    torch.cuda.synchronize()
    for scores, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(scores, wanted, atol=1e-4, rtol=1e-3)
