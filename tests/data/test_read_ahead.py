import _thread
import contextlib
import gc
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blockcopy_d2.data import VideoFrames, close_all, open_frames, read_ahead

ROOT = Path(__file__).resolve().parents[2]


def reading_threads():
    return [t for t in threading.enumerate() if t.name == "read-ahead"]


@pytest.fixture(autouse=True)
def no_thread_stays():
    yield
    assert not reading_threads()


class Source:
    """Counts items that are taken, and knows whether it was closed."""

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
    # One given out, three waiting, one held by the thread.
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
    for one in (arrays[0], torch.from_numpy(arrays[0])):
        with pytest.raises(TypeError, match=r"\(4, 4, 3\) is one frame, not a video"):
            open_frames(one)
    with pytest.raises(TypeError, match="A video is a path, .*; not NoneType"):
        open_frames(None)


class Stalled:
    """Gives one item, then waits until it is let go."""

    def __init__(self):
        self.go_on, self.closed = threading.Event(), threading.Event()

    def __iter__(self):
        try:
            yield 0
            self.go_on.wait(30)
            yield 1
        finally:
            self.closed.set()


def test_closing_does_not_wait_for_sources_that_are_silent(caplog):
    sources = [Stalled() for _ in range(4)]
    readers = [read_ahead(source) for source in sources]
    assert [next(reader) for reader in readers] == [0] * 4
    start = time.monotonic()
    close_all(readers)
    assert 0.9 < time.monotonic() - start < 2
    assert "A source of frames did not answer within 1 s" in caplog.text
    threads = reading_threads()
    assert len(threads) == 4 and all(thread.daemon for thread in threads)
    for source in sources:
        source.go_on.set()
        assert source.closed.wait(5), "the source is closed when it comes back"
    for thread in threads:
        thread.join(5)
    assert list(readers[0]) == [], "what came back late is dropped"


def test_an_interrupt_does_not_wait_for_a_source_that_is_silent():
    source = Stalled()
    reader = read_ahead(source)
    next(reader)
    timer = threading.Timer(0.2, _thread.interrupt_main)
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), contextlib.closing(reader):
        next(reader)
    assert time.monotonic() - start < 2
    source.go_on.set()
    for thread in reading_threads():
        thread.join(5)


def test_a_program_ends_while_a_source_is_silent():
    program = (
        "import itertools, threading\n"
        "from blockcopy_d2.data import read_ahead\n"
        "def stalled():\n"
        "    yield 0\n"
        "    threading.Event().wait()\n"
        "print(next(read_ahead(stalled())))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def test_a_reader_that_is_forgotten_stops():
    source = Source(10**9)
    reader = read_ahead(source)
    next(reader)
    (thread,) = reading_threads()
    del reader
    gc.collect()
    thread.join(5)
    assert source.closed


def test_the_latest_of_a_source_that_does_not_wait():
    taken, written = threading.Semaphore(0), threading.Semaphore(0)

    def live():
        for index in range(6):
            # Items 0, 3 and 5 are waited for; the others pass.
            yield index
            written.release()
            if index in (0, 3, 5):
                taken.acquire(timeout=10)

    reader = read_ahead(live(), latest=True)
    seen = []
    for number in (1, 3, 2):
        for _ in range(number):
            assert written.acquire(timeout=10)
        seen.append((next(reader), reader.dropped))
        taken.release()
    assert seen == [(0, 0), (3, 2), (5, 3)]
    with pytest.raises(StopIteration):
        next(reader)
    assert reader.dropped == 3


def test_the_end_of_a_live_source_does_not_hide_its_last_item():
    for source in (Source(5), Source(5, ValueError("gone"))):
        reader = read_ahead(source, latest=True)
        for thread in reading_threads():
            thread.join(0.2)
        items = []
        with pytest.raises((StopIteration, ValueError)):
            while True:
                items.append(next(reader))
        assert items[-1] == 4 and len(items) + reader.dropped == 5


def test_frames_that_share_a_buffer_are_copied():
    def camera():
        buffer = np.zeros((4, 4, 3), np.uint8)
        for index in range(12):
            buffer[:] = index
            yield buffer

    with contextlib.closing(read_ahead(open_frames(camera()))) as reader:
        frames = list(reader)
    assert [frame[0, 0, 0] for frame in frames] == list(range(12))


def test_closing_copied_frames_closes_their_source():
    closed = threading.Event()

    def source():
        try:
            while True:
                yield np.zeros((4, 4, 3), np.uint8)
        finally:
            closed.set()

    reader = read_ahead(open_frames(source()))
    next(reader)
    reader.close()
    assert closed.is_set()
