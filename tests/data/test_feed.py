"""Frames at a rate, and reconnection after a camera was lost."""

import contextlib
import itertools
import logging
import math
import signal
import threading
import time
import types

import numpy as np
import pytest

from blockcopy_d2.data import FrameFeed, FrameReadError, OwnFrames, next_of_each, open_frames
from blockcopy_d2.data import feed as feed_module
from blockcopy_d2.data.read_ahead import ENDED, read_ahead
from blockcopy_d2.data.video_files import FrameSizeError

from .cameras import MjpegCamera, RtspCamera

pytest.importorskip("av")


class Source:
    """Gives frames at 25 per second of its own clock; each connection has its own script."""

    source, name = "rtsp://***@host/door", "door"

    def __init__(self, *connections, live=True):
        self.live, self.opened = live, 0
        self._connections = connections

    def read(self, *, vectors=False):
        self.opened += 1
        number, error = self._connections[min(self.opened, len(self._connections)) - 1]
        for index in range(number):
            yield np.full((4, 4, 3), index, np.uint8), index / 25, f"vectors {index}"
        if error is not None:
            raise error


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(feed_module, "_SHORTEST_PAUSE", 0.01)
    monkeypatch.setattr(feed_module, "_LONGEST_PAUSE", 0.04)


def broken(reason="nothing came for 30 seconds"):
    return FrameReadError("rtsp://***@host/door", "door", 3, reason)


def take(feed, number):
    frames = iter(feed)
    with contextlib.closing(frames):
        return [next(frames) for _ in range(number)]


def test_a_lost_camera_is_found_again(caplog):
    """After any kind of loss times continue, vectors do not, and the log names no secret."""
    refused = ValueError("rtsp://***@host/door cannot be read as a video: Connection refused")
    late = OSError("http://u:s3cret@host/x?token=s3cret is gone")
    source = Source((3, broken()), (0, refused), (0, late), (2, None), (1000, None))
    feed = FrameFeed(source)
    with caplog.at_level(logging.WARNING):
        frames = take(feed, 8)
    assert source.opened == 5 and feed.reconnects == 2 and feed.connected
    assert [frame.reconnects for frame in frames] == [0, 0, 0, 1, 1, 2, 2, 2]
    assert [frame.image[0, 0, 0] for frame in frames] == [0, 1, 2, 0, 1, 0, 1, 2]
    seconds = [frame.seconds for frame in frames]
    assert seconds[:3] == [0, 0.04, 0.08] and seconds == sorted(seconds)
    assert seconds[4] - seconds[3] == pytest.approx(0.04)
    assert "s3cret" not in caplog.text and caplog.text.count("rtsp://***@host/door is back") == 2
    for reason in (
        *("nothing came for 30 seconds", "cannot be read as a video: Connection refused"),
        *("http://***@host/x?*** is gone", "it ended"),
    ):
        assert f"rtsp://***@host/door is lost: {reason}. It is tried again in" in caplog.text


def test_patience_ends_with_an_error():
    source = Source((2, None), (0, ValueError("Connection refused")))
    feed = FrameFeed(source, reconnect=0.2)
    start = time.perf_counter()
    with pytest.raises(FrameReadError, match="refused; for 0.2 seconds it was not found") as caught:
        list(feed)
    assert 0.2 <= time.perf_counter() - start < 2 and not feed.connected
    assert caught.value.frame_index == 2 and 3 <= source.opened <= 12
    # Without `reconnect`, and for files, a loss is an error and an end is the end.
    for options, live in (({"reconnect": 0}, True), ({}, False)):
        with pytest.raises(FrameReadError, match="nothing came for 30"):
            list(FrameFeed(Source((2, broken()), live=live), **options))
        assert len(list(FrameFeed(Source((2, None), live=live), **options))) == 2


def test_another_size_is_no_loss():
    error = FrameSizeError("a", "a", 0, "its size is 8x8, the video's is 4x4")
    with pytest.raises(FrameSizeError):
        list(FrameFeed(Source((2, None), (1, error))))


def test_a_source_that_breaks_at_once_is_not_pestered(monkeypatch):
    """Pauses double with or without a frame, until a connection holds."""
    pauses = []
    monkeypatch.setattr(feed_module, "_SHORTEST_PAUSE", 1.0)
    monkeypatch.setattr(feed_module, "_LONGEST_PAUSE", 5.0)
    monkeypatch.setattr(threading.Event, "wait", lambda self, seconds: pauses.append(seconds))
    take(FrameFeed(Source((1, None))), 6)
    assert all(n <= x <= 1.2 * n for x, n in zip(pauses, [1, 2, 4, 5, 5], strict=True))
    assert len(set(pauses[3:])) == 2, "by chance a little different"


@pytest.mark.parametrize("rate, indices", [(5, [0, 5, 10, 15]), (10, [0, 3, 5, 8, 10, 13, 15, 18])])
def test_a_file_is_thinned_by_its_own_clock(rate, indices):
    frames = list(FrameFeed(Source((20, None), live=False), fps=rate))
    assert [frame.image[0, 0, 0] for frame in frames] == indices
    # Vectors lead to a frame that was left out.
    assert all(frame.vectors is None for frame in frames)
    assert frames[-1].skipped == indices[-1] + 1 - len(indices)
    assert len(list(FrameFeed(Source((20, None), live=False), fps=1000))) == 20


def test_a_rate_is_kept_for_frames_that_come_unevenly():
    """No two frames come at once after a gap."""
    times = [*np.arange(0, 2, 0.041), *np.arange(10, 12, 0.041)]
    pace = feed_module._Pace(5)
    taken = [seconds for seconds in times if pace.takes(seconds)]
    assert len(taken) == 20 and np.diff(taken).min() > 0.15


def test_a_camera_is_thinned_by_the_time_of_its_frames(monkeypatch):
    """Live frames are thinned by the time at which they come, not by the source's clock."""
    now = itertools.count(step=0.1)
    clock = types.SimpleNamespace(perf_counter=lambda: next(now), time=time.time)
    monkeypatch.setattr(feed_module, "time", clock)
    frames = take(FrameFeed(Source((1000, None)), fps=2), 4)
    assert [frame.image[0, 0, 0] for frame in frames] == [0, 5, 10, 15]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"fps": 0}, "fps is 0.0; it must be a finite number within"),
        ({"fps": math.nan}, "fps is nan"),
        ({"fps": "5"}, "fps is '5'"),
        ({"reconnect": -1}, "reconnect is -1; it must be seconds"),
        ({"reconnect": math.nan}, "reconnect is nan"),
        ({"reconnect": "yes"}, "reconnect is 'yes'"),
        ({"reconnect": True}, "reconnect is True"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        FrameFeed(Source((1, None)), **options)


def test_pictures_without_times_have_no_rate():
    with pytest.raises(ValueError, match="an iterable of pictures has no times"):
        FrameFeed(OwnFrames([]), fps=5)


def test_closing_ends_the_wait_for_a_lost_camera(monkeypatch):
    monkeypatch.setattr(feed_module, "_SHORTEST_PAUSE", 30.0)
    monkeypatch.setattr(feed_module, "_LONGEST_PAUSE", 30.0)
    feed = FrameFeed(Source((1, None)))
    reader = read_ahead(feed, latest=True)
    next(reader)
    deadline = time.monotonic() + 5
    while feed.connected and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not feed.connected
    start = time.monotonic()
    reader.close()
    assert time.monotonic() - start < 0.5 and not reader._thread.is_alive()


def test_live_sources_do_not_wait_for_each_other():
    """Silent sources are left out, and so are ended ones, without a busy loop."""
    go_on = threading.Event()

    def silent():
        yield "silent"
        go_on.wait(30)

    def steady(number):
        for index in range(number):
            yield index
            time.sleep(0.03)

    readers = [read_ahead(items, latest=True) for items in (silent(), steady(4), steady(2))]
    try:
        ticks = [next_of_each(readers)]
        while ticks[-1][1] is not ENDED:
            ticks.append(next_of_each(readers))
        shown = [[x for x in items if x not in (None, ENDED)] for items in zip(*ticks)]
        assert shown[0] == ["silent"] and shown[1][-1] == 3 and shown[2][-1] == 1
        assert len(ticks) < 14
    finally:
        go_on.set()
        for reader in readers:
            reader.close()


def test_sources_that_wait_are_waited_for():
    def slow():
        time.sleep(0.2)
        yield "slow"

    def live():
        yield "live"
        time.sleep(0.6)

    readers = [read_ahead(slow()), read_ahead(live(), latest=True), read_ahead([1, 2])]
    assert next_of_each(readers) == ["slow", "live", 1]
    assert next_of_each(readers) == [ENDED, None, 2]
    for reader in readers:
        reader.close()


def found_after(reader, reconnects):
    """Returns the first frame after so many losses."""
    deadline = time.monotonic() + 20
    while (frame := next(reader)).reconnects < reconnects:
        assert time.monotonic() < deadline
    return frame


def test_a_camera_by_http_comes_back(monkeypatch, caplog):
    """An RTSP camera comes back after a cut and after silence."""
    monkeypatch.setattr("blockcopy_d2.data.video_decoding._READ_SECONDS", 0.5)
    with MjpegCamera() as camera:
        feed = FrameFeed(open_frames(camera.address))
        with contextlib.closing(read_ahead(feed, latest=True)) as reader:
            before = next(reader)
            camera.cut()
            while feed.connected:
                time.sleep(0.01)
            camera.start()
            back = found_after(reader, 1)
            assert back.image.mean() < 40, "the newest frame of the new connection"
            assert back.captured - before.captured == pytest.approx(
                back.arrived - before.arrived, abs=0.1
            )
            camera.silent_after = 5
            again = found_after(reader, 2)
            assert again.seconds > back.seconds > before.seconds
            camera.go_on.set()
    assert "nothing came for 0.5 seconds" in caplog.text and "s3cret" not in caplog.text


@pytest.mark.slow
def test_a_camera_by_rtsp_comes_back(monkeypatch, caplog):
    """GStreamer's server is cut, goes silent, and is gone while the stream is closed."""
    monkeypatch.setattr("blockcopy_d2.data.video_decoding._READ_SECONDS", 1.0)
    with RtspCamera() as camera:
        video = open_frames(camera.address)
        assert (video.live, video.width, video.height, video.fps) == (True, 160, 96, 25)
        feed = FrameFeed(video)
        reader = read_ahead(feed, latest=True)
        before = next(reader)
        camera.signal(signal.SIGKILL)
        camera.process.wait()
        while feed.connected:
            time.sleep(0.01)
        camera.start()
        back = found_after(reader, 1)
        assert back.image.shape == (96, 160, 3) and back.seconds > before.seconds
        camera.signal(signal.SIGSTOP)
        while feed.connected:
            time.sleep(0.01)
        camera.signal(signal.SIGCONT)
        found_after(reader, 2)
        # A consumer that is slow gets the newest frame, and a count.
        dropped = reader.dropped
        time.sleep(1.0)
        next(reader)
        frame = next(reader)
        assert reader.dropped - dropped > 10 and time.perf_counter() - frame.arrived < 0.5
        camera.signal(signal.SIGKILL)
        while feed.connected:
            time.sleep(0.01)
        start = time.monotonic()
        reader.close()
        assert time.monotonic() - start < 2
    assert "s3cret" not in caplog.text and caplog.text.count("is back after") == 2
