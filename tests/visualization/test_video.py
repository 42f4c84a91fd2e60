import importlib.util
import os
import subprocess
import sys
from enum import IntEnum
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace

from blockcopy_d2.data import VideoFrames
from blockcopy_d2.data.video_format import VideoFormat
from blockcopy_d2.visualization import VideoWriter
from blockcopy_d2.visualization import video as video_module
from blockcopy_d2.visualization.video import SUFFIXES


def frame(value, size=(48, 64)):
    return np.full((*size, 3), value, dtype=np.uint8)


def decode(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [f.to_ndarray(format="bgr24") for f in container.decode(stream)]
        return stream.codec_context.name, stream.pix_fmt, stream.average_rate, frames


def test_video_plays_everywhere(tmp_path):
    path = tmp_path / "out.mp4"
    with VideoWriter(path, fps=12.5) as video:
        for value in (40, 80, 120, 160, 200):
            video.write(frame(value))
    codec, pix_fmt, rate, frames = decode(path)
    assert (codec, pix_fmt, rate) == ("h264", "yuv420p", 12.5)
    assert [f.shape for f in frames] == [(48, 64, 3)] * 5
    assert np.abs([f.mean() for f in frames] - np.array([40, 80, 120, 160, 200])).max() < 8
    content = path.read_bytes()
    assert content.find(b"moov") < content.find(b"mdat"), "the index must come first to stream it"


def test_odd_sizes_are_made_even(tmp_path):
    path = tmp_path / "out.mp4"
    with VideoWriter(path, fps=10) as video:
        video.write(frame(200, (33, 45)))
    (picture,) = decode(path)[3]
    assert picture.shape == (34, 46, 3)
    assert picture[33].mean() > 150 and picture[:, 45].mean() > 150


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted_video_is_playable(tmp_path, error):
    path = tmp_path / "out.mp4"
    with pytest.raises(error):
        with VideoWriter(path, fps=10) as video:
            for _ in range(7):
                video.write(frame(100))
            raise error
    assert len(decode(path)[3]) == 7


def test_video_without_frames_leaves_no_file(tmp_path):
    with VideoWriter(tmp_path / "out.mp4", fps=10):
        pass
    assert list(tmp_path.iterdir()) == []


def test_frame_of_another_size_is_refused(tmp_path):
    with VideoWriter(tmp_path / "out.mp4", fps=10) as video:
        video.write(frame(100))
        with pytest.raises(ValueError, match=r"out\.mp4: frame 1 is 32x16, .* 64x48"):
            video.write(frame(100, (16, 32)))


def test_unwritable_path_is_named_at_once(tmp_path):
    path = tmp_path / "missing" / "out.mp4"
    with pytest.raises(FileNotFoundError, match=f"Cannot write the video {path}"):
        VideoWriter(path, fps=10)
    with pytest.raises(IsADirectoryError, match=f"Cannot write the video {tmp_path}"):
        VideoWriter(tmp_path, fps=10)


def test_unknown_suffix_is_named_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"out\.xyz: its suffix names no video format"):
        VideoWriter(tmp_path / "out.xyz", fps=10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fps", [0, -1, float("nan")])
def test_frame_rate_must_be_positive(tmp_path, fps):
    with pytest.raises(ValueError, match="positive number of frames"):
        VideoWriter(tmp_path / "out.mp4", fps=fps)


def probe(path):
    """Returns the colours, the shape of pixels and the times of frames that the file tells."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context
        colors = codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range
        frames = list(container.decode(stream))
        return colors, stream.sample_aspect_ratio, frames


def video_format(**changes):
    values = {"fps": Fraction(25), "time_base": Fraction(1, 1000), **changes}
    return VideoFormat(**values)


# BGR
RED = (30, 60, 220)


def write_color(path, size, format=None):
    with VideoWriter(path, fps=10, format=format) as video:
        video.write(np.full((*size, 3), RED, dtype=np.uint8))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(
    "size, format, expected, matrix",
    [
        ((480, 640), None, (6, 6, 6, 1), "ITU601"),
        ((720, 1280), None, (1, 1, 1, 1), "ITU709"),
        ((64, 1280), video_format(), (1, 1, 1, 1), "ITU709"),
        ((720, 960), video_format(colorspace=6, color_primaries=5), (6, 5, 1, 1), "ITU601"),
        ((480, 640), video_format(colorspace=1, color_trc=13), (1, 6, 13, 1), "ITU709"),
        ((480, 640), video_format(colorspace=5, color_range=2), (5, 6, 6, 2), "ITU601"),
        pytest.param(
            *((720, 1280), video_format(colorspace=9, color_primaries=9), (9, 9, 1, 1), "BT2020"),
            marks=pytest.mark.skipif(
                "BT2020" not in Colorspace.__members__, reason="PyAV 17 cannot write BT.2020"
            ),
        ),
        # yuv420p is not written with the matrices RGB and YCgCo.
        ((480, 640), video_format(colorspace=0), (6, 6, 6, 1), "ITU601"),
        ((480, 640), video_format(colorspace=8), (6, 6, 6, 1), "ITU601"),
    ],
)
def test_colours_are_tagged_as_they_are_converted(tmp_path, suffix, size, format, expected, matrix):
    path = tmp_path / f"out{suffix}"
    write_color(path, size, format)
    colors, _, (picture,) = probe(path)
    assert colors == expected
    full = expected[3] == 2
    image = picture.reformat(
        format="bgr24",
        src_colorspace=matrix,
        src_color_range="JPEG" if full else "MPEG",
        dst_color_range="JPEG",
    ).to_ndarray()
    assert np.abs(image[20, 20].astype(int) - RED).max() <= 6
    # A player that follows the tags shows the same.
    (frame,) = VideoFrames(path)
    assert np.abs(frame[20, 20].astype(int) - RED).max() <= 6


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_shape_of_pixels_is_kept(tmp_path, suffix):
    write_color(tmp_path / f"a{suffix}", (64, 96), video_format(sample_aspect_ratio=Fraction(4, 3)))
    assert probe(tmp_path / f"a{suffix}")[1] == Fraction(4, 3)
    write_color(tmp_path / f"b{suffix}", (64, 96), video_format())
    assert (probe(tmp_path / f"b{suffix}")[1] or None) in (None, 1)


def times_of(path, seconds, fps=25, format=None):
    with VideoWriter(path, fps, format=format) as video:
        for time in seconds:
            video.write(frame(100), time)
    _, _, frames = probe(path)
    times = [f.pts * f.time_base for f in frames]
    return [float(time - times[0]) for time in times]


VARIABLE = [0, 0.033, 0.05, 0.35, 0.36, 2.5, 2.533]


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix != ".avi"])
@pytest.mark.parametrize("format", [None, video_format()], ids=["no format", "milliseconds"])
def test_times_are_kept(tmp_path, suffix, format):
    found = times_of(tmp_path / f"a{suffix}", VARIABLE, format=format)
    assert found == pytest.approx(VARIABLE, abs=6e-4)


@pytest.mark.parametrize("base", [Fraction(1, 90_000), Fraction(1001, 30_000), Fraction(1, 10**9)])
def test_times_of_the_source_are_exact(tmp_path, base):
    seconds = [n * 3003 * Fraction(1, 90_000) for n in (0, 1, 2, 5, 9)]
    found = times_of(tmp_path / "a.mp4", seconds, format=video_format(time_base=base))
    assert found == pytest.approx(list(map(float, seconds)), abs=1e-6)


def test_avi_gets_frames_in_order_at_its_rate(tmp_path):
    found = times_of(tmp_path / "a.avi", [n / 25 for n in range(30)])
    assert found == pytest.approx([n / 25 for n in range(30)], abs=1e-6)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "seconds",
    [[0, 0, 0, 0.1], [0, 1e-9, 2e-9, 1], [5, 5.1, 0, 0.1, -3, -2.9], [0, 0.1, None, None, 0.2]],
)
def test_times_rise(tmp_path, suffix, seconds):
    found = times_of(tmp_path / f"a{suffix}", seconds)
    assert len(found) == len(seconds) and np.diff(found).min() > 0


def test_a_clock_that_was_put_back_goes_on(tmp_path):
    found = times_of(tmp_path / "a.mp4", [100, 100.1, 0, 0.1, 0.2], fps=10)
    assert found == pytest.approx([0, 0.1, 0.2, 0.3, 0.4], abs=1e-3)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf")])
def test_a_time_must_be_a_number(tmp_path, seconds):
    with pytest.raises(ValueError, match="number of seconds"):
        times_of(tmp_path / "a.mp4", [0, seconds])


@pytest.mark.parametrize("fps", [1e-3, 0.3, 23.976, 30_000 / 1001, 1000])
def test_any_rate_is_kept(tmp_path, fps):
    with VideoWriter(tmp_path / "a.mp4", fps) as video:
        for _ in range(5):
            video.write(frame(100))
    assert float(decode(tmp_path / "a.mp4")[2]) == pytest.approx(fps, rel=1e-6)


@pytest.fixture(params=SUFFIXES)
def earlier(request, tmp_path):
    path = tmp_path / f"out{request.param}"
    path.write_text("an earlier video")
    return path


def assert_untouched(path):
    assert path.read_text() == "an earlier video"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("frames", [0, 3])
@pytest.mark.parametrize("error", [RuntimeError, SystemExit, MemoryError])
def test_an_earlier_video_outlives_a_failure(earlier, error, frames):
    with pytest.raises(error):
        with VideoWriter(earlier, fps=10) as video:
            for _ in range(frames):
                video.write(frame(100))
            raise error
    assert_untouched(earlier)


def test_an_earlier_video_is_there_until_the_new_one_is_whole(earlier):
    with pytest.raises(KeyboardInterrupt):
        with VideoWriter(earlier, fps=10) as video:
            for _ in range(5):
                video.write(frame(100))
            assert earlier.read_text() == "an earlier video"
            raise KeyboardInterrupt
    assert len(decode(earlier)[3]) == 5 and list(earlier.parent.iterdir()) == [earlier]


def test_an_earlier_video_outlives_one_without_frames(earlier):
    with VideoWriter(earlier, fps=10):
        pass
    assert_untouched(earlier)


def test_earlier_videos_outlive_a_full_disk(tmp_path):
    """A limit on the size of files fails as a full disk does: in the middle of a write."""
    paths = [tmp_path / f"out{suffix}" for suffix in SUFFIXES]
    for path in paths:
        path.write_text("an earlier video")
    program = """
import resource, signal, sys
import numpy as np
from blockcopy_d2.visualization.video import VideoWriteError, VideoWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
noise = np.random.default_rng(0)
for limit in (3_000, 60_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for path in sys.argv[1:]:
        try:
            with VideoWriter(path, 25) as video:
                for _ in range(8):
                    video.write(noise.integers(0, 255, (96, 160, 3), dtype=np.uint8))
        except VideoWriteError as error:
            print(error)
"""
    command = [sys.executable, "-c", program, *paths]
    done = subprocess.run(command, capture_output=True, text=True)
    errors = [line for line in done.stdout.splitlines() if line.startswith("Cannot write")]
    assert errors == [f"Cannot write the video {path}: File too large" for path in paths] * 2
    assert {path.read_text() for path in paths} == {"an earlier video"}
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_a_video_may_have_any_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [
        "a:b.mp4",
        "%03d.mp4",
        "-x.mkv",
        "ä b'.MP4",
        os.fsdecode(b"\xff.mp4"),
        "x" * 250 + ".mp4",
    ]
    for name in names:
        write_color(name, (16, 16))
        with open(name, "rb") as f, av.open(f) as container:
            assert sum(1 for _ in container.decode(video=0)) == 1
    assert sorted(os.listdir()) == sorted(names)


@pytest.mark.parametrize("name", ["a.webm", "a.gif", "a.png", "a.m3u8", "a.wav", "a.txt", "a", "."])
def test_what_holds_no_h264_is_refused(tmp_path, name):
    if name != ".":
        (tmp_path / name).write_text("mine")
    with pytest.raises((ValueError, IsADirectoryError), match="Cannot write the video"):
        VideoWriter(tmp_path / name, fps=10)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"] * (name != ".")


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(OSError, match="device or pipe"):
        VideoWriter(tmp_path / "pipe.mp4", fps=10)


def test_a_closed_video_takes_no_frame(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", fps=10) as video:
        video.write(frame(100))
    video.close()
    with pytest.raises(ValueError, match="closed"):
        video.write(frame(100))
    assert len(decode(tmp_path / "a.mp4")[3]) == 1


def test_pyav_17_has_one_matrix_less(tmp_path, monkeypatch):
    """Python 3.10 has no newer PyAV; BT.2020 is then written with the usual matrix."""
    fewer = {name: int(x) for name, x in Colorspace.__members__.items() if name != "BT2020"}
    monkeypatch.setattr(av.video.reformatter, "Colorspace", IntEnum("Colorspace", fewer))
    spec = importlib.util.spec_from_file_location("video_of_pyav_17", video_module.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = tmp_path / "out.mp4"
    with module.VideoWriter(path, fps=10, format=video_format(colorspace=9)) as video:
        video.write(np.full((48, 64, 3), RED, dtype=np.uint8))
    assert probe(path)[0][0] == 6
