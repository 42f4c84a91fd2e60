"""Vectors that come with the frames of a video, on their way to the network's input."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T

from blockcopy_d2.data import FrameMapper, VideoFrames, open_frames
from blockcopy_d2.motion import FrameVectors
from tests.data.test_video_formats import ORIENTATIONS, set_display_matrix
from tests.motion.videos import encode, pan

SIZE, SHIFT = (192, 256), (4, -2)
CODEC = {"bf": "0", "refs": "1", "g": "4"}


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("videos") / "pan.mp4"
    encode(file, pan(6, *SHIFT), **CODEC)
    return file


def middle(vectors, size, transform=None):
    """The median vector over cells of 16 pixels."""
    field = vectors.field(size, 16, transform)
    assert field.dtype == np.float32 and np.isfinite(field).all(0).mean() > 0.2
    return np.nanmedian(field.reshape(2, -1), 1)


def test_read_where_asked_with_the_same_frames(video):
    frames = VideoFrames(video)
    plain, read = list(frames.timed()), list(frames.read(vectors=True))
    for (image, seconds), (other, time, _) in zip(plain, read, strict=True):
        assert np.array_equal(image, other) and seconds == time
    without = [index for index, (_, _, vectors) in enumerate(read) if vectors is None]
    assert without == [0, 4], "key frames have none"
    for _, _, vectors in read:
        if vectors is not None:
            assert vectors.size == SIZE
            assert np.abs(middle(vectors, SIZE) - SHIFT).max() <= 0.5
    assert all(vectors is None for _, _, vectors in frames.read())


def test_pictures_and_iterables_have_none(tmp_path):
    (image,) = pan(1, 0, 0)
    assert [x[1:] for x in open_frames([image]).read(vectors=True)] == [(None, None)]
    from PIL import Image

    Image.fromarray(image).save(tmp_path / "0.png")
    assert [x[2] for x in open_frames(tmp_path).read(vectors=True)] == [None]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_vectors_turn_with_the_frames(tmp_path, orientation):
    """
    Vectors fit the picture: they lead to where the content was in the last frame.
    """
    torch.manual_seed(0)
    encode(tmp_path / "pan.mp4", pan(3, *SHIFT), **CODEC)
    a, b, c, d = ORIENTATIONS[orientation][0]
    frames = VideoFrames(set_display_matrix(tmp_path / "pan.mp4", a, b, c, d))
    (_, _, none), (before, _, _), (now, _, vectors) = frames.read(vectors=True)
    assert none is None and vectors.size == now.shape[:2] == (frames.height, frames.width)
    dx, dy = np.rint(middle(vectors, vectors.size)).astype(int)
    assert (dx, dy) == (a * SHIFT[0] + c * SHIFT[1], b * SHIFT[0] + d * SHIFT[1])
    inner = slice(16, -16), slice(16, -16)
    moved = np.roll(before.astype(int), (-dy, -dx), axis=(0, 1))
    along, across = (np.abs(now - x)[inner].mean() for x in (moved, before.astype(int)))
    assert along < across / 4


@pytest.mark.parametrize(
    "augmentation, shown, expected",
    [
        (T.Resize((96, 512)), (96, 512), (8, -1)),
        (T.RandomFlip(prob=1.0), SIZE, (-4, -2)),
        (T.RandomFlip(prob=1.0, horizontal=False, vertical=True), SIZE, (4, 2)),
        (T.FixedSizeCrop((128, 160)), (128, 160), (4, -2)),
    ],
)
def test_vectors_follow_the_transforms_of_the_input(augmentation, shown, expected):
    """Cells that had moved in another way stay with their content."""
    y, x = np.mgrid[2:192:4, 2:256:4].reshape(2, -1).astype(float)
    places = np.stack([x, y], 1)
    away = np.where((x < 32)[:, None] & (y < 32)[:, None], (0.0, 0.0), SHIFT)
    vectors = FrameVectors(SIZE, places, places + away)
    image = np.zeros((*SIZE, 3), np.uint8)
    image[:32, :32] = 255
    np.random.seed(0)
    mapper = FrameMapper(augmentations=[augmentation])
    inputs = mapper(image)
    assert tuple(inputs["image"].shape[1:]) == shown
    field = vectors.field(shown, 16, mapper.transforms)
    assert np.isfinite(field).all()
    still = np.asarray(inputs["image"])[0, 8::16, 8::16] == 255
    assert np.allclose(field[:, still], 0)
    assert np.allclose(field[:, ~still].T, expected)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize(
    "options",
    [{}, {"b-adapt": "0", "bf": "3"}, {"b-adapt": "0", "bf": "2", "b-pyramid": "none"}],
    ids=["default", "pyramid", "no pyramid"],
)
def test_bidirectional_frames_lead_to_the_frame_before(tmp_path, suffix, options):
    """
    B-frames as encoders write them by default: some are referred to, none is decoded in order.
    """
    torch.manual_seed(0)
    encode(tmp_path / f"pan.{suffix}", pan(12, *SHIFT), **options)
    read = [vectors for _, _, vectors in VideoFrames(tmp_path / f"pan.{suffix}").read(vectors=True)]
    assert len(read) == 12 and read[0] is None
    known = 0
    for vectors in read[1:]:
        field = np.full((2, 1), np.nan) if vectors is None else vectors.field(SIZE, 16)
        found = np.isfinite(field[0])
        if found.mean() > 0.2:
            known += 1
            assert np.abs(np.median(field[:, found], axis=1) - SHIFT).max() <= 0.5
    assert known >= 8
