"""Streams of cameras: lost and found again, at a rate, with a clock."""

import contextlib
import threading
import time

import numpy as np
import pytest

from blockcopy_d2 import VideoPredictor
from blockcopy_d2.data import FrameReadError
from blockcopy_d2.data import feed as feed_module
from blockcopy_d2.engine import load_config
from blockcopy_d2.resources import config_path
from tests.data.cameras import MjpegCamera
from tests.motion.videos import encode
from tests.small_model import CONFIG, small_model_opts

pytest.importorskip("av")
SIZE = (160, 96)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    opts = small_model_opts(tmp_path_factory.mktemp("weights"))
    # Frames far apart differ enough in brightness to be cuts.
    opts += ["MODEL.BLOCKCOPY.ENABLED", "True", "MODEL.BLOCKCOPY.SCENE_CUT", "0"]
    opts += ["MODEL.BLOCKCOPY.POLICY.NAME", "NoBlocks"]
    return VideoPredictor(load_config(config_path(CONFIG), opts))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(feed_module, "_SHORTEST_PAUSE", 0.05)


def go_on(stream, until, most=20.0):
    """Returns the first result for which ``until`` is true, and those before it."""
    passed, deadline = [], time.monotonic() + most
    for _, result in stream:
        if until(result):
            return result, passed
        passed.append(result)
        assert time.monotonic() < deadline


def test_a_stream_goes_on_after_its_camera_was_lost(predictor):
    with MjpegCamera(size=SIZE) as camera:
        with contextlib.closing(predictor.stream(camera.address)) as stream:
            assert next(stream)[1].executed == 1 and next(stream)[1].executed == 0
            camera.cut()
            threading.Timer(0.3, camera.start).start()
            back, before = go_on(stream, lambda result: result.clock.reconnects)
            assert all(result.executed == 0 for result in before)
            assert back.executed == 1 and back.is_first and back.age.max() == 0
            assert next(stream)[1].executed == 0


def test_a_stream_may_end_with_its_camera(predictor):
    with MjpegCamera(size=SIZE) as camera:
        stream = predictor.stream(camera.address, reconnect=0.2)
        next(stream)
        camera.cut()
        with pytest.raises(FrameReadError, match="was not found again") as caught:
            go_on(stream, lambda result: False)
    assert "s3cret" not in str(caught.value) and "***" in str(caught.value)


def test_the_clock_of_a_result(predictor):
    with MjpegCamera(size=SIZE, period=0.01) as camera:
        with contextlib.closing(predictor.stream(camera.address)) as stream:
            next(stream)
            time.sleep(0.4)
            next(stream)
            asked = time.time()
            _, result = next(stream)
            now = time.time()
    clock = result.clock
    assert asked - 0.4 < clock.captured and clock.captured + clock.latency <= now + 0.05
    assert 0 < clock.latency < 1 and clock.reconnects == 0
    assert clock.dropped == result.dropped and result.time > 0


def test_a_camera_at_a_rate(predictor):
    with MjpegCamera(size=SIZE, period=0.01) as camera:
        with contextlib.closing(predictor.stream(camera.address, fps=4)) as stream:
            clocks = [next(stream)[1].clock for _ in range(5)]
    took = clocks[-1].captured - clocks[0].captured
    assert 0.9 < took < 4, "four periods, if the model keeps up"
    assert all(clock.skipped + clock.dropped >= 5 for clock in clocks[1:])


def test_a_file_at_a_rate(predictor, tmp_path):
    images = [np.full((96, 160, 3), 10 * index, np.uint8) for index in range(20)]
    encode(tmp_path / "a.mkv", images)
    expected = [round(10 * n) for n in (0, 5, 10, 15)]
    pairs = list(predictor.stream(tmp_path / "a.mkv", fps=5))
    assert [round(image.mean()) for image, _ in pairs] == pytest.approx(expected, abs=4.9)
    assert [result.clock.skipped for _, result in pairs] == [0, 4, 4, 4]
    assert all(result.dropped == 0 for _, result in pairs)
    ticks = list(predictor.streams([tmp_path / "a.mkv"] * 2, fps=[5, None]))
    assert sum(tick[0] is not None for tick in ticks) == 4 and len(ticks) == 20
    with pytest.raises(ValueError, match="fps has 3 rates for 2 videos"):
        next(predictor.streams([tmp_path / "a.mkv"] * 2, fps=[1, 2, 3]))


def test_a_file_decoded_by_torchcodec(predictor, tmp_path):
    pytest.importorskip("torchcodec", reason="needs torchcodec", exc_type=ImportError)
    images = [np.full((96, 160, 3), 10 * index, np.uint8) for index in range(5)]
    encode(tmp_path / "a.mkv", images)
    for run in (
        lambda **options: predictor.stream(tmp_path / "a.mkv", **options),
        lambda **options: (x for (x,) in predictor.streams([tmp_path / "a.mkv"], **options)),
    ):
        expected, found = list(run()), list(run(decoder="torchcodec"))
        assert len(found) == 5
        for (image, result), (other, of_pyav) in zip(found, expected, strict=True):
            assert np.abs(image.astype(int) - other).max() <= 2
            assert result.time == pytest.approx(of_pyav.time)


def test_cameras_do_not_wait_for_one_that_is_lost(predictor):
    with MjpegCamera(size=SIZE) as first, MjpegCamera(size=SIZE) as second:
        with contextlib.closing(predictor.streams([first.address, second.address])) as ticks:
            both = next(tick for tick in ticks if None not in tick)
            assert all(result.clock.latency > 0 for _, result in both)
            second.cut()
            alone = [next(ticks) for _ in range(12)][-5:]
            assert all(tick[0] is not None and tick[1] is None for tick in alone)
            assert all(tick[0][1].executed == 0 for tick in alone)
            second.start()
            back = next(tick for tick in ticks if tick[1] is not None)
            assert back[1][1].executed == 1 and back[1][1].clock.reconnects == 1
            assert back[0] is None or back[0][1].executed == 0


def test_closing_while_a_camera_is_lost(predictor, monkeypatch):
    monkeypatch.setattr(feed_module, "_SHORTEST_PAUSE", 10.0)
    with MjpegCamera(size=SIZE) as camera:
        stream = predictor.stream(camera.address)
        next(stream)
        camera.cut()
        time.sleep(0.3)
        start = time.monotonic()
        stream.close()
        assert time.monotonic() - start < 2
    assert not [t for t in threading.enumerate() if t.name == "read-ahead"]
