"""Vectors of videos that the tests encode themselves."""

import av
import numpy as np
import pytest
import torch

from blockcopy_d2.data import VideoFrames
from blockcopy_d2.motion import BlockMatching, CodecReader, CodecVectors, FrameVectors
from tests.motion.pictures import inner, texture
from tests.motion.videos import encode, pan

NAMES = ["source", "w", "h", "src_x", "src_y", "dst_x", "dst_y", "motion_x", "motion_y"]
NAMES += ["motion_scale"]


def block(x, y, width, height, motion_x, motion_y, *, scale=4, source=-1):
    """A vector as PyAV gives it, of the block with its upper left at (x, y)."""
    values = dict.fromkeys(NAMES, 0)
    values.update(
        source=source,
        w=width,
        h=height,
        dst_x=x + width // 2,
        dst_y=y + height // 2,
        motion_x=motion_x,
        motion_y=motion_y,
        motion_scale=scale,
    )
    return tuple(values[name] for name in NAMES)


def vectors_of(*blocks):
    return np.array(list(blocks), dtype=[(name, "<i4") for name in NAMES])


def cell_vectors(blocks, frame_size, image_size, cell_size, distance=1):
    return FrameVectors.of_blocks(blocks, frame_size, distance).field(image_size, cell_size)


def read(reader, frame):
    """Vectors on cells of 16 pixels, or None."""
    vectors = reader.read(frame)
    return None if vectors is None else vectors.field((192, 256), 16)


def decode(path):
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.options = {"flags2": "+export_mvs"}
        yield from container.decode(video=0)


def as_image(frame):
    image = torch.from_numpy(frame.to_ndarray(format="bgr24"))
    return image.permute(2, 0, 1)[None].contiguous()


@pytest.fixture(scope="module", params=[{"bf": "0"}, {"bf": "2", "b-adapt": "0"}], ids=["P", "B"])
def panned(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "pan.mp4"
    torch.manual_seed(0)
    encode(path, pan(10, 4, -2), refs="1", g="8", **{"b-pyramid": "none"}, **request.param)
    return path


def test_vectors_lead_to_the_frame_shown_before(panned):
    """Frames may be reordered; intra frames report no vectors."""
    reader, estimator = (
        CodecReader(),
        CodecVectors(cell_size=16, fallback=BlockMatching(cell_size=16)),
    )
    previous, without = None, []
    for index, frame in enumerate(decode(panned)):
        found = read(reader, frame)
        if found is None:
            without.append(index)
        image = as_image(frame)
        current = estimator.features(image, codec=[found])
        if found is not None:
            known = np.isfinite(found).all(0)
            middle = np.nanmedian(found.reshape(2, -1), 1)
            assert known.mean() > 0.2 and np.abs(middle - [4, -2]).max() <= 0.5, index
        if previous is not None:
            field = inner(estimator.estimate(current, previous), 16, 32)
            moved = field[0, :, (field[0] != 0).any(0)]
            assert (
                moved.numel() and (moved.median(1).values - torch.tensor([4, -2])).abs().max() < 1
            )
        previous = current
    assert 0 in without and len(without) < 5


def test_a_still_video_gives_zeros(tmp_path):
    encode(tmp_path / "still.mp4", pan(5, 0, 0))
    reader, estimator = (
        CodecReader(),
        CodecVectors(cell_size=16, fallback=BlockMatching(cell_size=16)),
    )
    frames = list(decode(tmp_path / "still.mp4"))
    features = [estimator.features(as_image(x), codec=[read(reader, x)]) for x in frames]
    for current, previous in zip(features[1:], features):
        assert (estimator.estimate(current, previous) == 0).all()


def test_seeking_forgets_the_order(panned):
    frames = list(decode(panned))
    reader = CodecReader()
    found = [reader.read(frame) for frame in frames[:3]]
    assert any(x is not None for x in found)
    reader.reset()
    assert reader.read(frames[2]) is None


def test_blocks_are_averaged_over_cells_by_area():
    found = cell_vectors(
        vectors_of(
            block(0, 0, 16, 16, 8, -4),
            block(16, 0, 8, 16, 4, 0),
            block(24, 0, 8, 16, 12, 0),
            block(0, 16, 8, 8, 40, 40),  # a quarter of its cell only
            block(16, 16, 16, 8, 16, 16),  # half of it
        ),
        (32, 32),
        (32, 32),
        16,
    )
    assert found[:, 0, 0].tolist() == [2, -1]
    assert found[:, 0, 1].tolist() == [2, 0]
    assert np.isnan(found[:, 1, 0]).all()
    assert found[:, 1, 1].tolist() == [4, 4]


def test_vectors_follow_the_size_of_the_input_and_the_distance():
    whole = vectors_of(*(block(x, y, 16, 16, 8, 4) for x in (0, 16, 32) for y in (0, 16)))
    found = cell_vectors(whole, (32, 48), (64, 144), 16)
    assert found.shape == (2, 4, 9)
    assert (found[0] == 6).all() and (found[1] == 2).all()
    found = cell_vectors(whole, (32, 48), (16, 24), 16, distance=2)
    assert found.shape == (2, 1, 2)
    assert (found[0] == 0.5).all() and (found[1] == 0.25).all()


def test_blocks_beyond_the_border_and_no_blocks():
    found = cell_vectors(
        vectors_of(block(-8, -8, 16, 16, 4, 4), block(16, 16, 16, 16, 4, 4)), (20, 20), (20, 20), 16
    )
    assert np.isnan(found[:, 0, 0]).all() and found[:, 1, 1].tolist() == [1, 1]
    assert np.isnan(cell_vectors(vectors_of(), (20, 20), (20, 20), 16)).all()


def test_streams_without_vectors_fall_back_alone():
    """One stream of a batch has vectors, one has none; a wrong vector is not believed."""
    world = texture(192, 256)
    previous = world.repeat(2, 1, 1, 1)
    current = world.roll(-6, 3).repeat(2, 1, 1, 1)
    codec = np.full((2, 12, 16), np.nan, np.float32)
    codec[:, :, :8] = np.array([6, 0], np.float32).reshape(2, 1, 1)
    codec[:, 2, 2] = -20, 4
    fallback = BlockMatching(cell_size=16)
    estimator = CodecVectors(cell_size=16, fallback=fallback)
    now = estimator.features(current, codec=[codec, None])
    before = estimator.features(previous)
    field = estimator.estimate(now, before)
    assert torch.equal(field[1], fallback.estimate(now, before)[1])
    assert (field[0, :, :, 8:] == 0).all() and (field[0, :, 2, 2] == 0).all()
    assert (field[0, 0, 4:, :6] == 6).float().mean() > 0.95
    out = torch.full_like(field, float("nan"))
    assert torch.equal(estimator.estimate(now, before, out=out), field) and out.isfinite().all()


def test_vectors_of_another_size_are_refused():
    estimator = CodecVectors(cell_size=16, fallback=BlockMatching(cell_size=16))
    with pytest.raises(ValueError, match="do not fit a canvas"):
        estimator.features(texture(32, 32), codec=[np.zeros((2, 3, 2), np.float32)])
    with pytest.raises(ValueError, match=r"shape \(2, 2\) do not fit"):
        estimator.features(texture(32, 32), codec=[np.zeros((2, 2), np.float32)])
    with pytest.raises(ValueError, match="2 streams: expected 1"):
        estimator.features(texture(32, 32), codec=[np.zeros((2, 2, 2), np.float32), None])
    with pytest.raises(ValueError, match="fallback has cells of 8"):
        CodecVectors(cell_size=16, fallback=BlockMatching(cell_size=8))


def test_vectors_are_real_numbers_of_any_type():
    estimator, picture = CodecVectors(fallback=BlockMatching()), texture(16, 16)
    given = [[[1.0, 2.0], [3.0, 4.0]], [[0.5, 0.0], [0.0, 0.0]]]
    tensor = torch.tensor(given, requires_grad=True)
    for vectors in (given, tensor, tensor.bfloat16(), np.array(given, np.float64)):
        codec = estimator.features(picture, codec=[vectors]).codec
        assert codec.dtype == torch.float32 and codec[0].tolist() == given
    for vectors in ("vectors", [True], np.empty((2, 2, 2), object)):
        with pytest.raises(ValueError, match="expected an array of real numbers"):
            estimator.features(picture, codec=[vectors])


def test_vectors_that_are_not_finite_count_as_none():
    """Still cells stay, even if the picture changed so much that any vector would fit better."""
    estimator = CodecVectors(fallback=BlockMatching())
    before = estimator.features(torch.zeros(1, 3, 64, 64))
    codec = np.zeros((2, 4, 4), np.float32)
    codec[0, :, :2] = np.inf
    codec[1, :2, :2] = -np.inf
    now = estimator.features(torch.full((1, 3, 64, 64), 255.0), codec=[codec])
    assert (estimator.estimate(now, before) == 0).all()


@pytest.mark.parametrize("known, by_pixels", [(0, True), (7, True), (8, False), (12, False)])
def test_frames_of_which_little_is_known_fall_back(known, by_pixels):
    """In the others, cells without vectors stay."""
    world = texture(192, 256)
    current, previous = world.roll(-6, 3), world
    fallback = BlockMatching(cell_size=16)
    estimator = CodecVectors(cell_size=16, fallback=fallback)
    codec = np.full((2, 12, 16), np.nan, np.float32)
    codec[:, :, :known] = np.array([6, 0], np.float32).reshape(2, 1, 1)
    now, before = estimator.features(current, codec=[codec]), estimator.features(previous)
    field = estimator.estimate(now, before)
    assert torch.equal(field, fallback.estimate(now, before)) == by_pixels
    assert by_pixels or (field[0, :, :, known:] == 0).all()


def test_zeros_of_mpeg4_are_not_believed(tmp_path):
    """FFmpeg exports no vectors of its bidirectional frames, but zeros."""
    torch.manual_seed(0)
    encode(tmp_path / "pan.avi", pan(8, 4, -2), codec="mpeg4", bf="2")
    frames = VideoFrames(tmp_path / "pan.avi").read(vectors=True)
    fields = [None if x is None else x.field((192, 256), 16) for _, _, x in frames]
    known = [x for x in fields if x is not None]
    assert len(fields) == 8 and 1 <= len(known) <= 4
    for field in known:
        assert np.abs(np.nanmedian(field.reshape(2, -1), 1) - [4, -2]).max() <= 0.5
