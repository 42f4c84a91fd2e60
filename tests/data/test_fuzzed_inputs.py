"""Damaged videos and pictures: read as far as they go, or refused in one line that names them."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from blockcopy_d2.data import FrameReadError, VideoFrames, as_frame
from tests.data.test_video_formats import write_video

KINDS = {"a.mp4": "libx264", "a.mkv": "libx264", "a.ts": "libx264", "a.avi": "mpeg4"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Bytes of one video of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    return {
        name: write_video(folder / name, codec=codec, number=8).read_bytes()
        for name, codec in KINDS.items()
    }


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_bytes_of_a_video(whole, data):
    name = data.draw(st.sampled_from(sorted(KINDS)))
    content = bytearray(whole[name])
    places = st.integers(0, len(content) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=20)):
        content[place] = value
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, name)
        file.write_bytes(content[: data.draw(st.none() | places)])
        last = -1.0
        try:
            for image, seconds in VideoFrames(file).timed():
                assert image.dtype == np.uint8 and image.shape[2] == 3
                assert last < seconds
                last = seconds
        except (ValueError, FrameReadError) as error:
            assert name in str(error) and "\n" not in str(error)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_bytes_of_a_picture(data):
    suffix = data.draw(st.sampled_from(["png", "jpg", "tif", "bmp", "webp"]))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"a.{suffix}")
        Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(file)
        content = bytearray(file.read_bytes())
        places = st.integers(0, min(len(content) - 1, 200))
        for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=9)):
            content[place] = value
        file.write_bytes(content[: data.draw(st.none() | places)])
        try:
            (image,) = VideoFrames(file)
            assert image.dtype == np.uint8 and image.shape[2] == 3
        except FrameReadError as error:
            assert file.name in str(error)


@settings(max_examples=100, deadline=None)
@given(
    arrays.arrays(
        st.sampled_from([np.uint8, np.int8, np.uint16, np.float32, bool]),
        arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    )
)
def test_arrays(array):
    fits = array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.size
    if fits:
        assert as_frame(array) is array
    else:
        with pytest.raises(ValueError, match="A frame is .* of shape .*; expected uint8"):
            as_frame(array)
