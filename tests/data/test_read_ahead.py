import threading
import time

import numpy as np
import pytest
from PIL import Image

from blockcopy_d2.data import VideoFrames, open_frames, read_ahead


def reading_threads():
    return [t for t in threading.enumerate() if t.name == "read-ahead"]


@pytest.fixture(autouse=True)
def no_thread_stays():
    yield
    assert not reading_threads()


class Source:
    """Counts what is taken of it, and knows whether it was closed."""

    def __init__(self, number, error=None):
        self.taken, self.closed = 0, False
        self._number, self._error = number, error

    def __iter__(self):
        try:
            for index in range(self._number):
                self.taken += 1
                yield index
            if self._error:
                raise self._error
        finally:
            self.closed = True


def test_items_come_in_order():
    source = Source(20)
    assert list(read_ahead(source)) == list(range(20))
    assert source.closed


def test_it_reads_ahead_and_no_further():
    source = Source(100)
    reader = read_ahead(source, depth=3)
    next(reader)
    deadline = time.monotonic() + 5
    while source.taken < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    # One given out, three that wait, one in the thread's hands.
    assert source.taken == 5
    reader.close()


def test_reading_overlaps_with_what_is_done_meanwhile():
    started, go_on = threading.Event(), threading.Event()

    def slow():
        yield 0
        started.set()
        assert go_on.wait(5)
        yield 1

    reader = read_ahead(slow())
    assert next(reader) == 0
    assert started.wait(5), "the next item is not read before it is asked for"
    go_on.set()
    assert list(reader) == [1]


def test_closing_stops_the_thread_and_closes_the_source():
    source = Source(10**9)
    reader = read_ahead(source)
    next(reader)
    assert reading_threads()
    reader.close()
    assert not reading_threads() and source.closed


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_an_error_comes_after_the_items_before_it(error):
    seen = []
    with pytest.raises(type(error)):
        for item in read_ahead(Source(3, error)):
            seen.append(item)
    assert seen == [0, 1, 2]


def test_an_error_is_not_lost_behind_a_full_queue():
    reader = read_ahead(Source(6, ValueError("broken")), depth=1)
    with pytest.raises(ValueError, match="broken"):
        for _ in reader:
            time.sleep(0.02)


def test_what_cannot_be_iterated_is_an_error_and_no_wait():
    with pytest.raises(TypeError, match="not iterable"):
        next(read_ahead(None))


def test_sources(tmp_path):
    for index in range(2):
        Image.new("RGB", (32, 16), (index, 0, 0)).save(tmp_path / f"{index}.png")
    for source in (str(tmp_path), tmp_path):
        frames = open_frames(source)
        assert isinstance(frames, VideoFrames) and len(list(frames)) == 2
    arrays = [np.full((4, 4, 3), index, np.uint8) for index in range(2)]
    for source in (arrays, np.stack(arrays)):
        assert [frame[0, 0, 0] for frame in open_frames(source)] == [0, 1]
    with pytest.raises(FileNotFoundError, match="/dev/video63 does not exist"):
        open_frames(63)
    with pytest.raises(TypeError, match="A video is a path, .*; not NoneType"):
        open_frames(None)
