"""Cameras that are reached by HTTP: a server of MJPEG on this machine."""

import _thread
import contextlib
import threading
import time

import pytest

from blockcopy_d2.data import FrameReadError, VideoFrames, open_frames, read_ahead

from .cameras import HEIGHT, WIDTH, MjpegCamera, level

pytest.importorskip("av")
PERIOD = 0.02


@pytest.fixture
def camera():
    with MjpegCamera(period=PERIOD) as camera:
        yield camera


def test_a_camera_is_live_and_its_newest_frame_is_taken(camera):
    video = open_frames(camera.address)
    assert isinstance(video, VideoFrames) and video.live and video.num_frames is None
    assert (video.name, video.width, video.height) == ("door", WIDTH, HEIGHT)
    assert "s3cret" not in video.source
    with contextlib.closing(read_ahead(video, latest=video.live)) as reader:
        shown, dropped = [], []
        for image in reader:
            shown.append(level(image))
            dropped.append(reader.dropped)
            if len(shown) == 5:
                break
            time.sleep(10 * PERIOD)
    # The consumer is ten times too slow, so its next frame is about ten frames later.
    for before, after, passed in zip(shown, shown[1:], zip(dropped, dropped[1:])):
        assert after - before == pytest.approx(passed[1] - passed[0] + 1, abs=2.5)
        assert 4 <= passed[1] - passed[0] <= 20
    for _ in range(2):
        assert camera.gone.acquire(timeout=5), "both connections are closed"


def test_frames_without_times_have_those_at_which_they_come(camera):
    """FFmpeg counts MJPEG by HTTP at 25 frames per second, however fast it comes."""
    camera.period = 0.1
    video = VideoFrames(camera.address)
    came, times = [], []
    with contextlib.closing(video.timed()) as frames:
        for _, seconds in frames:
            came.append(time.perf_counter())
            times.append(seconds)
            if len(times) == 8:
                break
    assert times[0] == 0 and times == sorted(set(times))
    # Frames that came while the stream was opened are there at once.
    assert times[-1] == pytest.approx(came[-1] - came[0], abs=0.03)
    assert times[-1] - times[-4] > 0.2, "0.12 at 25 frames per second"


def test_a_camera_that_goes_silent_is_left_within_two_seconds(camera):
    video = VideoFrames(camera.address)
    camera.silent_after = 3
    reader = read_ahead(video, latest=True)
    next(reader)
    (thread,) = [t for t in threading.enumerate() if t.name == "read-ahead"]
    time.sleep(0.3)
    start = time.monotonic()
    reader.close()
    assert time.monotonic() - start < 2
    camera.go_on.set()
    thread.join(10)
    assert not thread.is_alive(), "what comes back late ends"
    for _ in range(2):
        assert camera.gone.acquire(timeout=5), "and closes its connection"


def test_opening_a_silent_camera_can_be_interrupted(camera):
    camera.silent_after = 0
    threading.Timer(0.3, _thread.interrupt_main).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        VideoFrames(camera.address)
    assert time.monotonic() - start < 2
    camera.go_on.set()
    for thread in [t for t in threading.enumerate() if t.name == "read-ahead"]:
        thread.join(10)


def test_a_silent_camera_is_given_up_and_no_secret_told(camera, monkeypatch):
    monkeypatch.setattr("blockcopy_d2.data.video_decoding._READ_SECONDS", 0.3)
    video = VideoFrames(camera.address)
    camera.silent_after = 3
    with pytest.raises(FrameReadError, match="nothing came for 0.3 seconds") as caught:
        list(video)
    assert "s3cret" not in str(caught.value)
    assert caught.value.video_id == "door" and "***" in caught.value.file_name
