"""Inputs of a predictor's frames: vectors of a codec, and pictures that lie on a GPU."""

import threading

import numpy as np
import pytest
import torch

from blockcopy_d2.data import Uploader, VideoFrames, pictures
from blockcopy_d2.engine import ticks
from blockcopy_d2.engine.frame_inputs import FrameInputs
from blockcopy_d2.engine.predictor import VideoPredictor
from tests.engine.test_predictor import build, frames
from tests.motion.videos import encode, pan


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def panned_video(folder):
    torch.manual_seed(0)
    file = folder / "pan.mp4"
    encode(file, pan(6, 6, -3), bf="0", refs="1", g="4")
    return file


def test_motion_of_the_codec_is_read_where_the_config_asks(folder, panned_video):
    """
    Vectors are scaled to the network's input; motion of a key frame is estimated from its pixels.
    """
    predictor = build(folder, "MODEL.BLOCKCOPY.MOTION.NAME", "CodecVectors")
    estimated, fallback = [], predictor.model.motion.fallback
    estimate = fallback.estimate
    fallback.estimate = lambda *a, **k: estimated.append(len(fields)) or estimate(*a, **k)
    fields = []
    for _, result in predictor.stream(panned_video):
        fields.append(result.field)
    assert fields[0] is None and estimated == [4]
    assert predictor.scale == pytest.approx(128 / 192)
    for field in fields[1:]:
        moved = field[0][:, (field[0] != 0).any(0)]
        assert moved.shape[1] > field[0, 0].numel() / 3
        assert (moved.median(1).values - torch.tensor([4.0, -2.0])).abs().max() < 0.75


@pytest.mark.parametrize("name", ["none", "DISFlow"])
def test_other_motion_reads_no_vectors(folder, panned_video, name, monkeypatch):
    asked = []
    read = VideoFrames.read
    monkeypatch.setattr(
        VideoFrames, "read", lambda self, **options: asked.append(options) or read(self, **options)
    )
    predictor = build(folder, "MODEL.BLOCKCOPY.MOTION.NAME", name)
    assert not predictor.reads_vectors
    assert sum(1 for _ in predictor.stream(panned_video)) == 6
    assert asked == [{"vectors": False}]


def vectors_of_frames(predictor):
    """Returns a list that gets the vectors of all videos in every tick."""
    given, tick = [], predictor._tick

    def noted(pictures, vectors, *others):
        given.extend(vectors)
        return tick(pictures, vectors, *others)

    predictor._tick = noted
    return given


def test_vectors_behind_a_dropped_frame_are_not_believed(folder, panned_video, monkeypatch):
    """Vectors lead to a frame that was left out."""

    class Dropping:
        def __init__(self, items, latest):
            self._items, self.dropped = iter(items), 0

        def __next__(self):
            item = next(self._items)
            if self.dropped == 0 and item[2] is not None:
                item, self.dropped = next(self._items), 1
            return item

    monkeypatch.setattr(ticks, "read_ahead", Dropping)
    monkeypatch.setattr(ticks, "close_all", lambda readers: None)
    predictor = build(folder, "MODEL.BLOCKCOPY.MOTION.NAME", "CodecVectors")
    given = vectors_of_frames(predictor)
    dropped = [result.dropped for _, result in predictor.stream(panned_video)]
    assert dropped == [0, 1, 0, 0, 0]
    assert [x is None for x in given] == [True, True, False, True, False]


def test_streams_have_vectors_of_their_own(folder, panned_video):
    """Two videos in one batch, one a file and one arrays; vectors must fit the frame."""
    predictor = build(folder, "MODEL.BLOCKCOPY.MOTION.NAME", "CodecVectors")
    given = vectors_of_frames(predictor)
    still = frames(4, (192, 256))
    results = list(predictor.streams([panned_video, still]))
    with_vectors = [x is not None for x in given[::2]]
    assert with_vectors == [False, True, True, True, False, True]
    assert all(x is None for x in given[1::2]) and results[-1][1] is None
    vectors = given[2]
    with pytest.raises(ValueError, match="Vectors of a frame of"):
        predictor(next(frames(1, (96, 160))), vectors)


@pytest.fixture
def tensors_lie_on_gpu(monkeypatch):
    """Tensors of the CPU are taken as if it were a GPU."""
    monkeypatch.setattr(pictures, "_lies_on_gpu", lambda x: isinstance(x, torch.Tensor))


def scores_of(results):
    return [result["instances"].scores for result in results]


def assert_all_equal(found, expected):
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("planes", [False, True])
def test_pictures_on_the_device_are_taken_as_they_are(folder, tensors_lie_on_gpu, planes):
    def camera():
        buffer = torch.empty((3, 96, 160) if planes else (96, 160, 3), dtype=torch.uint8)
        for image in frames(5):
            tensor = torch.from_numpy(image)
            buffer.copy_(tensor.permute(2, 0, 1) if planes else tensor)
            yield buffer

    predictor = build(folder, "MODEL.BLOCKCOPY.POLICY.NAME", "FrameDifference")
    expected = list(predictor.stream(frames(5)))
    found = list(predictor.stream(camera()))
    assert_all_equal(*(scores_of(x for _, x in pairs) for pairs in (found, expected)))
    for (tensor, result), (image, other) in zip(found, expected, strict=True):
        assert isinstance(tensor, torch.Tensor) and np.array_equal(tensor.numpy(), image)
        assert result["instances"].image_size == (96, 160) and result.scale == other.scale
        assert torch.equal(result.grid.active, other.grid.active)
    single = [predictor(buffer) for buffer in camera()]
    assert_all_equal(scores_of(single), scores_of(x for _, x in expected))


def test_a_mapper_of_arrays_gets_arrays(folder, tensors_lie_on_gpu):
    built = build(folder, "MODEL.BLOCKCOPY.POLICY.NAME", "AllBlocks")
    seen = []

    def mapper(image):
        seen.append(type(image))
        return built.mapper(image)

    predictor = VideoPredictor(model=built.model, mapper=mapper)
    tensors = [torch.from_numpy(image) for image in frames(2)]
    found = scores_of(result for _, result in predictor.stream(tensors))
    assert_all_equal(found, scores_of(result for _, result in built.stream(frames(2))))
    assert seen == [np.ndarray] * 2


def test_pictures_sent_ahead_are_those_of_the_host(folder, monkeypatch):
    """Acts as if the model was on a GPU, except for the memory."""
    predictor = build(folder, "MODEL.BLOCKCOPY.POLICY.NAME", "FrameDifference")
    expected = scores_of(result for _, result in predictor.stream(frames(4)))
    threads, send = set(), Uploader.send

    def noted(self, *args, **options):
        threads.add(threading.current_thread().name)
        return send(self, *args, **options)

    monkeypatch.setattr(Uploader, "send", noted)
    monkeypatch.setattr(FrameInputs, "sends", True)
    pairs = list(predictor.stream(frames(4)))
    assert threads == {"read-ahead"}
    assert all(np.array_equal(x, y) for (x, _), y in zip(pairs, frames(4), strict=True))
    assert_all_equal(scores_of(result for _, result in pairs), expected)
    # Callers may draw on frames, which are uploaded once.
    for image, result in predictor.stream(frames(4)):
        found = result["instances"].scores
        image[:] = 0
    assert torch.equal(found, expected[-1])
    result = predictor(next(frames(1)))
    assert torch.equal(result["instances"].scores, expected[0])


def test_tensors_that_are_no_pictures_are_named(folder, tensors_lie_on_gpu):
    predictor = build(folder)
    for shape in ((96, 160), (96, 160, 4), (1, 96, 160), (0, 160, 3), (1, 3, 96, 160)):
        with pytest.raises(ValueError, match=r"on a GPU is uint8 of shape .*\(3, height, width\)"):
            predictor(torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(ValueError, match="is float32 of shape"):
        next(predictor.stream([torch.zeros(96, 160, 3)]))
