import functools
import http.server
import logging
import os
import socket
import threading

import numpy as np
import pytest
from PIL import Image

from blockcopy_d2.data import FrameReadError, VideoFrames

av = pytest.importorskip("av")

HEIGHT, WIDTH, FRAMES = 48, 80, 20


def write_video(file, *, codec="mpeg4", num_frames=FRAMES, fps=12, rotation=None, title=None):
    """Frame i is grey of level 10 i, its top left corner red."""
    with av.open(str(file), "w") as container:
        if title is not None:
            container.metadata["title"] = title
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size = 5
        stream.bit_rate = 4_000_000
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for index in range(num_frames):
            image = np.full((HEIGHT, WIDTH, 3), 10 * index, np.uint8)
            image[: HEIGHT // 4, : WIDTH // 4] = (0, 0, 255)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "bgr24")))
        container.mux(stream.encode())
    return file


def write_folder(folder, names, size=(WIDTH, HEIGHT)):
    folder.mkdir(exist_ok=True)
    for level, name in enumerate(names):
        Image.new("RGB", size, (200, level, 0)).save(folder / name)
    return folder


@pytest.mark.parametrize("name", ["clip.avi", "clip.mp4", "clip.mkv"])
def test_a_video_file(tmp_path, name):
    video = VideoFrames(write_video(tmp_path / name))
    assert (video.name, video.fps, video.width, video.height) == ("clip", 12, WIDTH, HEIGHT)
    assert video.num_frames in (FRAMES, None)
    for _ in range(2):  # each iteration starts at the first frame
        frames = list(video)
        assert len(frames) == FRAMES
        assert all(f.shape == (HEIGHT, WIDTH, 3) and f.dtype == np.uint8 for f in frames)
        levels = [frame[HEIGHT // 2, WIDTH // 2].mean() for frame in frames]
        assert np.allclose(levels, 10 * np.arange(FRAMES), atol=4)
        blue, green, red = frames[5][4, 4].astype(int)
        assert red > 200 and blue < 60 and green < 60


def test_frames_are_decoded_on_demand(tmp_path):
    video = VideoFrames(write_video(tmp_path / "clip.avi"))
    frames = iter(video)
    next(frames)
    frames.close()
    assert len(list(video)) == FRAMES


@pytest.mark.skipif(
    not hasattr(av.VideoStream, "set_display_rotation"), reason="PyAV cannot write rotations"
)
def test_a_turned_video_comes_out_upright(tmp_path):
    file = write_video(tmp_path / "clip.mp4", codec="libx264", rotation=90)
    video = VideoFrames(file)
    assert (video.width, video.height) == (HEIGHT, WIDTH)
    frame = next(iter(video))
    assert frame.shape == (WIDTH, HEIGHT, 3)
    # Turned counterclockwise by 90 degrees, the top left corner is at the bottom left.
    assert frame[-4, 4, 2] > 200 and frame[4, 4, 2] < 60


@pytest.fixture
def address(tmp_path):
    """Address of a server of the files in tmp_path."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_address(tmp_path, address):
    write_video(tmp_path / "clip.mkv")
    video = VideoFrames(f"{address}/clip.mkv")
    assert video.name == "clip" and len(list(video)) == FRAMES
    with pytest.raises(ValueError, match="none.mkv cannot be read as a video: .*404"):
        VideoFrames(f"{address}/none.mkv")


def test_a_server_that_is_silent_is_given_up(monkeypatch):
    monkeypatch.setattr("blockcopy_d2.data.video_decoding._OPEN_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/clip.mp4"
        with pytest.raises(ValueError, match="clip.mp4 does not answer within 0.3 seconds"):
            VideoFrames(address)


def test_a_folder_in_natural_order(tmp_path):
    names = ["frame2.png", "frame10.png", "Frame1.png", "frame10b.png"]
    folder = write_folder(tmp_path / "frames", names)
    (folder / "notes.txt").write_text("not a frame")
    video = VideoFrames(folder, default_fps=17.0)
    assert (video.name, video.fps, video.num_frames) == ("frames", 17.0, 4)
    assert (video.width, video.height) == (WIDTH, HEIGHT)
    frames = list(video)
    assert [frame[0, 0, 1] for frame in frames] == [2, 0, 1, 3]
    assert frames[0][0, 0].tolist() == [0, 2, 200]


def test_missing_sources(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.mp4 does not exist"):
        VideoFrames(tmp_path / "missing.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty holds no image"):
        VideoFrames(tmp_path / "empty")


@pytest.mark.parametrize("content", [b"", b"this is not a video" * 100])
def test_files_that_are_no_video(tmp_path, content):
    file = tmp_path / "clip.mp4"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="clip.mp4 cannot be read as a video"):
        VideoFrames(file)


def test_a_file_without_pictures(tmp_path):
    file = tmp_path / "sound.wav"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="sound.wav has no video stream"):
        VideoFrames(file)


def test_a_cover_picture_is_no_video(tmp_path):
    cover = tmp_path / "cover.jpg"
    Image.new("RGB", (32, 32), (0, 200, 0)).save(cover)
    for name, streams in (("song.mp3", ("sound",)), ("clip.mp4", ("cover", "video"))):
        write_cover(tmp_path / name, cover, streams)
    with pytest.raises(ValueError, match="song.mp3 has no video stream, but a cover picture"):
        VideoFrames(tmp_path / "song.mp3")
    video = VideoFrames(tmp_path / "clip.mp4")
    assert (video.width, video.height) == (WIDTH, HEIGHT) and len(list(video)) == 3


def write_cover(file, cover, streams):
    """A cover picture as the first stream of a file, where a container keeps it, too."""
    with av.open(str(file), "w") as container, av.open(str(cover)) as picture:
        attached = container.add_stream_from_template(picture.streams.video[0])
        attached.disposition = av.stream.Disposition.attached_pic
        if "video" in streams:
            stream = container.add_stream("libx264", rate=12)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        else:
            stream = container.add_stream("libmp3lame", rate=44100)
        packet = next(picture.demux())
        packet.stream = attached
        container.mux(packet)
        for _ in range(3):
            if "video" in streams:
                image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
                frame = av.VideoFrame.from_ndarray(image, "bgr24")
            else:
                frame = av.AudioFrame.from_ndarray(np.zeros((2, 1152), np.int16), "s16p", "stereo")
                frame.rate = 44100
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_names_that_look_like_protocols_or_are_no_text(tmp_path):
    whole = write_video(tmp_path / "clip.avi", num_frames=3).read_bytes()
    names = [b"10:30.avi", b"http:clip.avi", b"-clip.avi", b"a%03d#?.avi", b"caf\xe9.avi"]
    for name in names:
        path = os.path.join(os.fsencode(tmp_path), name)
        with open(path, "wb") as f:
            f.write(whole)
        for source in (path, os.fsdecode(path)):
            video = VideoFrames(source)
            assert len(list(video)) == 3
            assert video.name.encode() and video.source.encode(), "it can be printed"
        with open(path, "wb") as f:
            f.write(b"no video" * 99)
        with pytest.raises(ValueError, match="cannot be read as a video") as caught:
            VideoFrames(path)
        assert str(caught.value).encode()


def test_metadata_that_is_no_utf8(tmp_path):
    file = write_video(tmp_path / "clip.avi", title="caf\u00e9")
    content = file.read_bytes()
    assert content.count("caf\u00e9".encode()) == 1
    file.write_bytes(content.replace("caf\u00e9".encode(), b"caf\xe9 "))
    assert len(list(VideoFrames(file))) == FRAMES


def test_hidden_files_and_folders_are_no_frames(tmp_path):
    folder = write_folder(tmp_path / "frames", ["1.png", "2.png"])
    (folder / "._1.png").write_bytes(b"\0\5\x16\7" * 20)
    (folder / ".hidden.jpg").write_bytes(b"")
    (folder / "more.png").mkdir()
    video = VideoFrames(folder)
    assert video.num_frames == len(list(video)) == 2


def test_a_truncated_file_delivers_what_it_has(tmp_path, caplog):
    whole = write_video(tmp_path / "whole.avi").read_bytes()
    file = tmp_path / "clip.avi"
    file.write_bytes(whole[: int(0.7 * len(whole))])
    video = VideoFrames(file)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        decoded = len(list(video))
    assert 0 < decoded < FRAMES
    assert f"clip.avi ends after frame {decoded - 1}; its header announces 20" in caplog.text


def test_a_broken_stretch_is_skipped_and_reported(tmp_path, caplog):
    whole = bytearray(write_video(tmp_path / "whole.mp4", codec="libx264").read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 40] = bytes(40)
    file = tmp_path / "clip.mp4"
    file.write_bytes(whole)
    with caplog.at_level(logging.WARNING):
        decoded = len(list(VideoFrames(file)))
    assert decoded > FRAMES // 2
    assert "clip.mp4 is broken from frame" in caplog.text


def test_a_video_without_a_decodable_frame(tmp_path):
    whole = write_video(tmp_path / "whole.mkv", codec="libx264").read_bytes()
    file = tmp_path / "clip.mkv"
    file.write_bytes(whole[: int(0.4 * len(whole))])
    with pytest.raises((FrameReadError, ValueError), match="clip.mkv"):
        VideoFrames(file)


def test_a_broken_image_of_a_folder(tmp_path):
    folder = write_folder(tmp_path / "frames", [f"{i}.png" for i in range(4)])
    (folder / "2.png").write_bytes(b"no image")
    video = VideoFrames(folder)
    frames = []
    with pytest.raises(FrameReadError, match="Frame 2 of clip frames.*2.png: not a readable"):
        for frame in video:
            frames.append(frame)
    assert len(frames) == 2


def test_frames_that_change_size(tmp_path):
    folder = write_folder(tmp_path / "frames", ["0.png", "1.png"])
    write_folder(folder, ["2.png"], size=(WIDTH, HEIGHT + 2))
    with pytest.raises(FrameReadError, match="its size is 80x50, the video's is 80x48"):
        list(VideoFrames(folder))
