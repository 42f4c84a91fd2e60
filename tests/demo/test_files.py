"""No file of the user's is lost, and a run that ends early leaves whole files."""

import contextlib
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import demo
from blockcopy_d2.data import FrameReadError
from blockcopy_d2.engine.still_pictures import picture_target, picture_targets
from blockcopy_d2.visualization import VideoWriter
from tests.demo.outputs import broken_after, decode
from tests.small_model import CONFIG, small_model_opts


@pytest.fixture
def files(clip, tmp_path):
    """A video, pictures and folders under several names, none of which may change."""
    Image.new("RGB", (160, 96), (90, 120, 40)).save(tmp_path / "x.png")
    for folder in ("a", "b", "out"):
        (tmp_path / folder).mkdir()
    shutil.copy(tmp_path / "x.png", tmp_path / "a")
    shutil.copy(tmp_path / "x.png", tmp_path / "b")
    (tmp_path / "link.mp4").symlink_to("clip.mp4")
    os.link(clip, tmp_path / "hard.mp4")
    (tmp_path / "frame.mp4").symlink_to("a/x.png")
    (tmp_path / "linked").symlink_to("a")
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "x.heic").write_bytes((tmp_path / "x.png").read_bytes())
    (tmp_path / "broken.png").write_text("no picture")
    return tmp_path


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    "args, message",
    [
        ("--video-input clip.mp4 --output clip.mp4", "clip.mp4 is the input clip.mp4, which would"),
        ("--video-input clip.mp4 --output ./a/../clip.mp4", "is the input clip.mp4"),
        ("--video-input clip.mp4 --output link.mp4", "link.mp4 is the input clip.mp4"),
        ("--video-input link.mp4 --output clip.mp4", "clip.mp4 is the input link.mp4"),
        ("--video-input clip.mp4 --output hard.mp4", "hard.mp4 is the input clip.mp4"),
        ("--video-input file://{}/clip.mp4 --output clip.mp4", "clip.mp4 is the input file://"),
        ("--video-input a --output a/out.mp4", "a/out.mp4 lies in the folder of frames a"),
        ("--video-input a --output linked/out.mp4", "lies in the folder of frames a"),
        ("--video-input a --output frame.mp4", "frame.mp4 lies in the folder of frames a"),
        ("--video-input clip.mp4 --output notes.txt", "names no video format that holds H.264"),
        ("--video-input clip.mp4 --output out.webm", "names no video format that holds H.264"),
        ("--video-input clip.mp4 --output x.png", "names no video format that holds H.264"),
        ("--video-input clip.mp4 --output out", "out: it is a folder"),
        ("--video-input clip.mp4 --output /dev/null", "null: it is a device or pipe"),
        ("--video-input notes.txt --output hard.mp4", "notes.txt cannot be read as a video"),
        ("--input x.png --output x.png", "x.png is the input x.png"),
        ("--input x.png --output .", "x.png is the input x.png"),
        ("--input x.png --output linked/../../*/x.png", "x.png is the input x.png"),
        ("--input a/x.png b/x.png --output out", "a/x.png and b/x.png would both be written to"),
        ("--input a/x.png b/x.png --output b", "b/x.png is the input b/x.png"),
        ("--input x.png --output notes.txt", "notes.txt: its suffix names no format"),
        ("--input x.heic --output out", "x.heic: its suffix names no format"),
        ("--input x.png broken.png --output out", "broken.png cannot be read as a picture"),
        ("--input x.png missing.png --output out", "missing.png cannot be read as a picture"),
        ("--input a --output out", "a is a folder; --video-input takes folders"),
        ("--input x.png --output missing/x.png", "no folder .*missing to write"),
    ],
)
def test_no_file_is_lost(run, files, monkeypatch, args, message):
    monkeypatch.chdir(files)
    monkeypatch.setattr(demo, "VideoPredictor", None)  # Refused before any model is built.
    before = contents(files)
    args = args.replace("*", files.name).format(files).split()
    with pytest.raises(SystemExit, match=message):
        run(*args)
    assert contents(files) == before


def test_weights_and_config_are_not_replaced(run, folder, clip, tmp_path, monkeypatch):
    (tmp_path / "model.mp4").write_text("weights")
    opts = ["MODEL.WEIGHTS", str(tmp_path / "model.mp4")]
    with pytest.raises(SystemExit, match="model.mp4 is the input .*model.mp4"):
        run("--video-input", clip, "--output", tmp_path / "model.mp4", opts=opts)
    assert (tmp_path / "model.mp4").read_text() == "weights"


def test_a_full_disk_is_named_and_the_earlier_video_stays(run, clip, tmp_path, monkeypatch):
    (tmp_path / "out.mp4").write_text("old")

    def full(self, frame, seconds=None):
        with self._named_errors():
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(VideoWriter, "write", full)
    with pytest.raises(SystemExit, match="Cannot write the video .*out.mp4: No space left"):
        run("--video-input", clip, "--output", tmp_path / "out.mp4")
    assert (tmp_path / "out.mp4").read_text() == "old"


@pytest.mark.parametrize("number, error", [(0, KeyboardInterrupt), (3, RuntimeError)])
def test_an_earlier_video_outlives_a_failure(run, clip, tmp_path, monkeypatch, number, error):
    (tmp_path / "out.mp4").write_text("old")
    monkeypatch.setattr(demo.VideoFrames, "read", broken_after(number, error()))
    with pytest.raises(error) if error is RuntimeError else contextlib.nullcontext():
        run("--video-input", clip, "--output", tmp_path / "out.mp4")
    assert (tmp_path / "out.mp4").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["clip.mp4", "out.mp4"]


def test_interrupt_leaves_a_playable_video(run, clip, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo.VideoFrames, "read", broken_after(3, KeyboardInterrupt()))
    run("--video-input", clip, "--output", tmp_path / "out.mp4")
    assert len(decode(tmp_path / "out.mp4")[1]) == 3
    assert "3 frames" in capsys.readouterr().out


def test_broken_video_leaves_what_was_read(run, clip, tmp_path, capsys, monkeypatch):
    error = FrameReadError(str(clip), "clip", 3, "its size is 8x8, the video's is 160x96")
    monkeypatch.setattr(demo.VideoFrames, "read", broken_after(3, error))
    with pytest.raises(SystemExit, match="Frame 3 of clip clip cannot be used"):
        run("--video-input", clip, "--output", tmp_path / "out.mp4")
    assert len(decode(tmp_path / "out.mp4")[1]) == 3
    assert "3 frames" in capsys.readouterr().out


def test_terminating_leaves_a_playable_video(folder, tmp_path):
    """Ends another process, as a scheduler does."""
    frames = tmp_path / "frames"
    frames.mkdir()
    for index in range(3):
        Image.new("RGB", (160, 96), (90, 60 * index, 40)).save(frames / f"{index}.png")
    for index in range(3, 3000):
        os.link(frames / "0.png", frames / f"{index}.png")
    (tmp_path / "out.mkv").write_text("old")
    command = [sys.executable, "demo.py", "--config-file", CONFIG, "--dense"]
    command += ["--video-input", str(frames), "--output", str(tmp_path / "out.mkv")]
    command += ["--opts", *map(str, small_model_opts(folder))]
    root = Path(demo.__file__).parent
    with subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True) as job:
        errors = ""
        while not re.search(r"[3-9]/3000", errors) and (character := job.stderr.read(1)):
            errors += character
        assert (tmp_path / "out.mkv").read_text() == "old"
        job.send_signal(signal.SIGTERM)
        errors += job.communicate(timeout=60)[1]
    assert job.returncode == 0, errors
    assert "Interrupted." in errors
    assert len(decode(tmp_path / "out.mkv")[1]) > 0
    assert sorted(os.listdir(tmp_path)) == ["frames", "out.mkv"]


def test_a_picture_of_an_address_is_written_without_its_secrets(tmp_path, capfd):
    address = "http://u:s3cret@127.0.0.1:1/a/street.png?token=s3cret"
    assert picture_target(address, str(tmp_path)) == str(tmp_path / "street.png")
    args = demo.get_parser().parse_args(["--input", address, "--output", str(tmp_path)])
    with pytest.raises(ValueError, match="street.png") as caught:
        picture_targets(args)
    assert "s3cret" not in str(caught.value) + "".join(capfd.readouterr())
