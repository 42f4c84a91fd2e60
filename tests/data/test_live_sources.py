"""Cameras that are reached by HTTP: a server of MJPEG on this machine."""

import _thread
import contextlib
import http.server
import io
import threading
import time
import types

import pytest
from PIL import Image

from blockcopy_d2.data import FrameReadError, VideoFrames, open_frames, read_ahead

pytest.importorskip("av")
WIDTH, HEIGHT, PERIOD = 80, 48, 0.02


@pytest.fixture
def camera():
    """
    Serves frames of rising brightness at ``address``. After ``silent_after`` frames of a
    connection it goes silent until ``go_on`` is set.
    """
    state = types.SimpleNamespace(silent_after=None, go_on=threading.Event(), connections=0)
    state.gone = threading.Semaphore(0)

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            state.connections += 1
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            try:
                for index in range(10**6):
                    if index == state.silent_after:
                        state.go_on.wait(30)
                    self.wfile.write(part(index))
                    time.sleep(PERIOD)
            except OSError:
                state.gone.release()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        state.address = f"http://u:s3cret@127.0.0.1:{server.server_port}/door.mjpg?token=s3cret"
        yield state
        state.go_on.set()
        server.shutdown()


def part(index):
    content = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (min(255, index),) * 3).save(content, "JPEG", quality=95)
    header = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {content.tell()}\r\n\r\n"
    return header.encode() + content.getvalue() + b"\r\n"


def level(image):
    return image[HEIGHT // 2, WIDTH // 2].mean()


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
    # The consumer is ten times too slow, and the frame it gets is as many frames later.
    for before, after, passed in zip(shown, shown[1:], zip(dropped, dropped[1:])):
        assert after - before == pytest.approx(passed[1] - passed[0] + 1, abs=2.5)
        assert 4 <= passed[1] - passed[0] <= 20
    for _ in range(2):
        assert camera.gone.acquire(timeout=5), "both connections are closed"


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
