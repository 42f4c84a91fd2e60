"""
torchcodec gives PyAV's pictures and times; videos that it cannot decode right are left to PyAV.
"""

import importlib.util
import logging
import re
import sys
import types

import numpy as np
import pytest
import torch

from blockcopy_d2.data import VideoFrames, open_frames
from blockcopy_d2.data import torchcodec_video as module
from blockcopy_d2.data.torchcodec_video import TorchcodecVideo, import_torchcodec

av = pytest.importorskip("av")

from blockcopy_d2.visualization import VideoWriter  # noqa: E402
from tests.data.test_video_formats import (  # noqa: E402
    ORIENTATIONS,
    four_corners,
    set_display_matrix,
    write_video,
)


def torchcodec_works():
    if importlib.util.find_spec("torchcodec") is None:
        return False
    try:
        import_torchcodec()
    except ImportError:
        return False
    return True


needs_torchcodec = pytest.mark.skipif(
    not torchcodec_works(), reason="needs torchcodec and FFmpeg's shared libraries"
)


def noise(number, size=(96, 160)):
    """Coloured squares that move: edges in luma and chroma."""
    generator = np.random.default_rng(0)
    tiles = generator.integers(0, 255, (size[0] // 8 + number, size[1] // 8, 3), np.uint8)
    picture = tiles.repeat(8, 0).repeat(8, 1)
    return [np.ascontiguousarray(picture[2 * t : 2 * t + size[0]]) for t in range(number)]


def assert_same(file, most=2):
    """Frames within ``most`` levels of PyAV's, at the same times."""
    expected = list(VideoFrames(file).timed())
    video = VideoFrames(file, decoder="torchcodec")
    assert isinstance(video._reader, TorchcodecVideo)
    found = list(video.timed())
    assert [time for _, time in found] == pytest.approx([time for _, time in expected], abs=1e-6)
    for (image, _), (other, _) in zip(found, expected, strict=True):
        assert image.dtype == np.uint8 and image.flags.c_contiguous
        assert np.abs(image.astype(int) - other).max() <= most
    return video


@needs_torchcodec
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.mov", "colon: 1.mp4"])
def test_the_same_frames(tmp_path, name):
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    video = assert_same(write_video(tmp_path / name, images=noise(9), codec=codec))
    assert (video.fps, video.width, video.height) == (12, 160, 96)


@needs_torchcodec
def test_times_of_a_variable_rate(tmp_path):
    times = [0, 40, 90, 300, 310, 500]
    file = write_video(tmp_path / "a.mkv", images=noise(6), milliseconds=times)
    video = assert_same(file)
    assert [seconds for _, seconds in video.timed()] == pytest.approx([t / 1000 for t in times])


@needs_torchcodec
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_turned_videos_are_upright_and_mirrored_ones_are_left_to_pyav(
    tmp_path, orientation, caplog
):
    matrix, _ = ORIENTATIONS[orientation]
    file = write_video(tmp_path / "a.mp4", images=[four_corners()] * 2)
    set_display_matrix(file, *matrix)
    a, b, c, d = matrix
    if a * d - b * c > 0:
        assert_same(file)
        return
    with caplog.at_level(logging.WARNING):
        video = VideoFrames(file, decoder="torchcodec")
    assert not isinstance(video._reader, TorchcodecVideo)
    assert f"{file} is decoded by PyAV, not by torchcodec: it is mirrored." in caplog.text
    assert all(map(np.array_equal, video, VideoFrames(file)))


@needs_torchcodec
@pytest.mark.parametrize(
    "size, tag, reason",
    [
        ((96, 160), 1, None),
        ((720, 64), 1, None),
        ((720, 64), 6, None),
        ((96, 160), None, None),
        ((720, 64), None, "it is HD and does not name the matrix of its colours"),
        ((96, 160), 9, "the matrix of its colours is number 9"),
    ],
)
@pytest.mark.parametrize("full_range", [False, True])
def test_colours_are_the_same_or_left_to_pyav(tmp_path, size, tag, reason, full_range, caplog):
    tags = {"color_range": 2} if full_range else {}
    tags |= {"colorspace": tag} if tag is not None else {}
    file = write_video(tmp_path / "a.mp4", images=noise(2, size), tags=tags)
    if reason is None:
        assert_same(file)
        return
    with caplog.at_level(logging.WARNING):
        assert not isinstance(VideoFrames(file, decoder="torchcodec")._reader, TorchcodecVideo)
    assert reason in caplog.text


@needs_torchcodec
def test_what_breaks_on_the_way_is_read_on_by_pyav(tmp_path, monkeypatch, caplog):
    file = write_video(tmp_path / "a.mkv", images=noise(6))
    video, get = VideoFrames(file, decoder="torchcodec"), import_torchcodec().VideoDecoder
    get_frame_at = get.get_frame_at

    def broken(self, index):
        if index == 3:
            raise RuntimeError("Could not push packet to decoder: Invalid data\nand more")
        return get_frame_at(self, index)

    monkeypatch.setattr(get, "get_frame_at", broken)
    assert all(map(np.array_equal, list(video), list(VideoFrames(file))))
    assert len(list(video)) == 6
    assert "PyAV reads on, for torchcodec says: Could not push packet to decoder" in caplog.text


@needs_torchcodec
def test_a_truncated_file_is_named(tmp_path, caplog):
    with VideoWriter(tmp_path / "a.mp4", 12) as video:
        for image in noise(40):
            video.write(image)
    content = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(content[: 9 * len(content) // 10])
    video = VideoFrames(tmp_path / "a.mp4", decoder="torchcodec")
    assert isinstance(video._reader, TorchcodecVideo) and 0 < len(list(video)) < 40
    assert "its header announces 40 frames. Is it truncated?" in caplog.text


@needs_torchcodec
def test_vectors_are_read_by_pyav(tmp_path):
    file = write_video(tmp_path / "a.mp4", images=noise(4))
    video = VideoFrames(file, decoder="torchcodec")
    assert [found is None for _, _, found in video.read(vectors=True)] == [True, *[False] * 3]


def test_what_is_no_file_is_left_to_pyav(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, "import_torchcodec", lambda: None)
    file = write_video(tmp_path / "a.mp4")
    with caplog.at_level(logging.WARNING):
        video = open_frames(f"file://{file}", decoder="torchcodec")
    assert len(list(video)) == 4 and "not by torchcodec: it is not a file" in caplog.text


def test_auto_is_pyav_on_a_cpu_and_where_torchcodec_is_missing(tmp_path, monkeypatch):
    file = write_video(tmp_path / "a.mp4")
    monkeypatch.setattr(module, "TorchcodecVideo", None)
    assert len(list(VideoFrames(file, decoder="auto"))) == 4
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    assert len(list(VideoFrames(file, decoder="auto", device="cuda"))) == 4
    assert len(list(VideoFrames(file))) == 4


def test_asked_for_by_name_it_must_be_there(tmp_path, monkeypatch):
    file = write_video(tmp_path / "a.mp4")
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with pytest.raises(ImportError, match=r"pip install 'blockcopy-d2\[gpu-decode\]'"):
        VideoFrames(file, decoder="torchcodec")
    with pytest.raises(ValueError, match="decoder is 'nvdec'; it must be one of auto, pyav, torch"):
        VideoFrames(file, decoder="nvdec")


def test_without_the_libraries_of_ffmpeg_they_are_named(tmp_path, monkeypatch):
    class Broken:
        """Finds torchcodec, and fails as it does without FFmpeg."""

        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "torchcodec":
                raise RuntimeError("Could not load libtorchcodec.\nLikely causes: ...")

    for name in [name for name in sys.modules if name.split(".")[0] == "torchcodec"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(ImportError, match="apt install ffmpeg.*Could not load libtorchcodec"):
        VideoFrames(write_video(tmp_path / "a.mp4"), decoder="torchcodec")


class FakeDecoder:
    """A GPU's decoder, on the CPU: RGB tensors; its first frame may be wrong."""

    cpu_fallback, change = False, 0

    def __init__(self, source, **options):
        assert options["device"].type == "cuda" and options["dimension_order"] == "NHWC"
        self._frames = list(VideoFrames(source.removeprefix("file:")).timed())

    def __len__(self):
        return len(self._frames)

    def get_frame_at(self, index):
        image, seconds = self._frames[index]
        image = (image.astype(int) + self.change).clip(0, 255).astype(np.uint8)
        data = torch.from_numpy(np.ascontiguousarray(image[..., ::-1]))
        return types.SimpleNamespace(data=data, pts_seconds=1.5 + seconds)


@pytest.mark.parametrize(
    "change, fallback, reason",
    [
        (0, False, None),
        (2, False, None),
        (8, False, "its first frame would differ by [78]"),
        (0, "Video not supported", r"the GPU does not decode it \(Video not supported\)"),
    ],
)
def test_a_gpu_decodes_what_it_decodes_right(
    tmp_path, monkeypatch, caplog, change, fallback, reason
):
    monkeypatch.setattr(FakeDecoder, "change", change)
    monkeypatch.setattr(FakeDecoder, "cpu_fallback", fallback)
    decoders = types.SimpleNamespace(VideoDecoder=FakeDecoder)
    monkeypatch.setattr(module, "import_torchcodec", lambda: decoders)
    file = write_video(tmp_path / "a.mp4", images=noise(3))
    with caplog.at_level(logging.INFO):
        video = VideoFrames(file, decoder="auto", device="cuda")
    assert isinstance(video._reader, TorchcodecVideo) == (reason is None)
    if reason is not None:
        (record,) = [r for r in caplog.records if r.name == module.__name__]
        assert record.levelno == logging.INFO
        caplog.clear()
        VideoFrames(file, decoder="torchcodec", device="cuda")
        assert re.search(reason, caplog.text)
        return
    pairs = list(video.timed())
    assert [seconds for _, seconds in pairs] == pytest.approx([0, 1 / 12, 2 / 12], abs=1e-4)
    for (image, _), other in zip(pairs, VideoFrames(file), strict=True):
        assert np.abs(np.asarray(image).astype(int) - other).max() <= change
