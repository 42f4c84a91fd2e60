import av
import numpy as np
import pytest

from blockcopy_d2.visualization import VideoWriter


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
