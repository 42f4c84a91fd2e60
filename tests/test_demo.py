import contextlib
import errno
import importlib.util
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

import demo
from blockcopy_d2.data import FrameReadError
from blockcopy_d2.data.video_files import VideoFormat
from blockcopy_d2.engine.acceleration import load_video_config
from blockcopy_d2.engine.defaults import load_config
from blockcopy_d2.engine.still_pictures import picture_target, picture_targets
from blockcopy_d2.resources import config_path, trained_weights
from blockcopy_d2.visualization import VideoWriter
from tests.data.cameras import MjpegCamera
from tests.engine.test_acceleration import NARROW, ROTATED
from tests.small_model import CONFIG, small_model_opts, write_lazy_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture
def clip(tmp_path):
    """A short video of a square that moves."""
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, fps=12) as video:
        for index in range(8):
            image = np.full((96, 160, 3), 90, dtype=np.uint8)
            image[20:60, 10 + 12 * index : 50 + 12 * index] = (40, 90, 220)
            video.write(image)
    return path


@pytest.fixture
def run(folder, monkeypatch):
    def run(*args, opts=()):
        config = ["--config-file", CONFIG, "--confidence-threshold", "0.05"]
        opts = ["--opts", *small_model_opts(folder), *opts]
        monkeypatch.setattr("sys.argv", ["demo.py", *config, *map(str, args), *opts])
        demo.main()

    return run


def decode(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream.average_rate, [f.to_ndarray(format="bgr24") for f in container.decode(stream)]


def cells(report, row):
    (line,) = [line for line in report.split("\n") if line.strip().startswith(row)]
    return line.split()[1:]


def test_video_is_run_and_drawn(run, clip, tmp_path, capsys):
    run("--video-input", clip, "--output", tmp_path / "out.mp4", "--target", "0.4")
    rate, frames = decode(tmp_path / "out.mp4")
    assert rate == 12 and len(frames) == 8
    height, width = frames[0].shape[:2]
    assert width == 160 and 96 + 16 <= height <= 96 + 20
    # A dimmed block shows that not everything was executed.
    assert min(frame[:96].min(axis=2).mean() for frame in frames[1:]) < frames[0][:96].mean()
    report = capsys.readouterr().out
    executed, milliseconds = cells(report, "BlockCopy")
    assert 0 < float(executed.rstrip("%")) < 100 and float(milliseconds) > 0
    assert "clip: 8 frames" in report and "Wrote 8 frames" in report and "dense" not in report


def test_all_blocks_agree_with_the_dense_model(run, clip, capsys):
    opts = ["MODEL.BLOCKCOPY.POLICY.NAME", "AllBlocks"]
    run("--video-input", clip, "--compare-dense", "--max-frames", 4, opts=opts)
    executed, _, ratio, ap, ap50 = cells(capsys.readouterr().out, "BlockCopy")
    assert executed == "100.0%" and float(ratio) > 0
    assert float(ap) > 99 and float(ap50) > 99


def test_proposals_are_drawn(run, clip, tmp_path, capsys):
    opts = ["MODEL.META_ARCHITECTURE", "ProposalNetwork"]
    outputs = [tmp_path / "boxes.mp4", tmp_path / "none.mp4"]
    for output, threshold in zip(outputs, ("0", "1")):
        arguments = ["--confidence-threshold", threshold, "--target", "0.4", "--output", output]
        run("--video-input", clip, *arguments, "--max-frames", 3, opts=opts)
    executed, _ = cells(capsys.readouterr().out.split("Wrote")[0], "BlockCopy")
    assert 0 < float(executed.rstrip("%")) <= 100
    boxes, none = (np.stack(decode(output)[1]).astype(int) for output in outputs)
    assert abs(boxes[:, :96] - none[:, :96]).mean() > 2
    with pytest.raises(SystemExit, match="a ProposalNetwork finds none"):
        run("--video-input", clip, "--compare-dense", opts=opts)


def test_no_blocks_agree_less(run, clip, capsys):
    opts = ["MODEL.BLOCKCOPY.POLICY.NAME", "NoBlocks"]
    run("--video-input", clip, "--compare-dense", opts=opts)
    executed, _, _, ap, _ = cells(capsys.readouterr().out, "BlockCopy")
    assert executed == "0.0%" and float(ap) < 99


def test_dense_is_detectron2_alone(run, clip, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "VideoPredictor", None)
    run("--video-input", clip, "--dense", "--max-frames", 2, "--output", tmp_path / "out.mp4")
    assert cells(capsys.readouterr().out, "dense")[0] == "100.0%"
    assert len(decode(tmp_path / "out.mp4")[1]) == 2


def broken_after(number, error):
    def read(self, vectors=False):
        for index in range(number):
            yield np.full((96, 160, 3), 90, dtype=np.uint8), index / 12, None
        raise error

    return read


def test_a_picture_of_an_address_is_written_without_its_secrets(tmp_path, capfd):
    address = "http://u:s3cret@127.0.0.1:1/a/street.png?token=s3cret"
    assert picture_target(address, str(tmp_path)) == str(tmp_path / "street.png")
    args = demo.get_parser().parse_args(["--input", address, "--output", str(tmp_path)])
    with pytest.raises(ValueError, match="street.png") as caught:
        picture_targets(args)
    assert "s3cret" not in str(caught.value) + "".join(capfd.readouterr())


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


@pytest.mark.parametrize("number, error", [(0, KeyboardInterrupt), (3, RuntimeError)])
def test_an_earlier_video_outlives_a_failure(run, clip, tmp_path, monkeypatch, number, error):
    (tmp_path / "out.mp4").write_text("old")
    monkeypatch.setattr(demo.VideoFrames, "read", broken_after(number, error()))
    with pytest.raises(error) if error is RuntimeError else contextlib.nullcontext():
        run("--video-input", clip, "--output", tmp_path / "out.mp4")
    assert (tmp_path / "out.mp4").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["clip.mp4", "out.mp4"]


def test_times_colours_and_shape_of_pixels_are_kept(run, tmp_path):
    times = [0, 0.1, 0.15, 0.4, 0.45]
    format = VideoFormat(Fraction(10), Fraction(1, 1000), Fraction(4, 3), 5, 5, 6, 1)
    with VideoWriter(tmp_path / "in.mp4", 10, format=format) as video:
        for index, seconds in enumerate(times):
            video.write(np.full((96, 160, 3), 40 * index, dtype=np.uint8), seconds)
    run("--video-input", tmp_path / "in.mp4", "--output", tmp_path / "out.mkv", "--dense")
    with av.open(str(tmp_path / "out.mkv")) as container:
        stream = container.streams.video[0]
        assert [frame.time for frame in container.decode(stream)] == pytest.approx(times, abs=1e-3)
        codec = stream.codec_context
        assert stream.sample_aspect_ratio == Fraction(4, 3)
        assert (codec.colorspace, codec.color_primaries, codec.color_trc) == (5, 5, 6)


def test_a_live_source_gives_its_newest_frames(run, tmp_path, clip, monkeypatch, capsys):
    opened, step = demo.VideoFrames.__init__, demo.VideoRun._step

    def open_camera(self, source, **options):
        opened(self, source, **options)
        self.live = True

    def camera(self, vectors=False):
        for index in itertools.count():
            time.sleep(0.01)
            yield np.full((96, 160, 3), 90, dtype=np.uint8), index / 100, None

    def slow_step(self, *frame):
        time.sleep(0.05)
        return step(self, *frame)

    monkeypatch.setattr(demo.VideoFrames, "__init__", open_camera)
    monkeypatch.setattr(demo.VideoFrames, "read", camera)
    monkeypatch.setattr(demo.VideoRun, "_step", slow_step)
    run("--video-input", clip, "--max-frames", 4, "--output", tmp_path / "out.mp4")
    report = capsys.readouterr().out
    assert int(re.search(r"4 frames and (\d+) dropped", report)[1]) >= 6
    with av.open(str(tmp_path / "out.mp4")) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert len(times) == 4 and times[-1] - times[0] > 0.06


def test_a_camera_is_watched_and_found_again(run, tmp_path, monkeypatch, capfd, caplog):
    """Runs at a rate, with counts for Prometheus; no output holds secrets of the address."""
    pytest.importorskip("prometheus_client")
    monkeypatch.setattr("blockcopy_d2.data.feed._SHORTEST_PAUSE", 0.05)
    pages, resets, observe = [], [], demo.StreamMetrics.observe

    def watched(self, stream, result):
        observe(self, stream, result)
        resets.append(result.is_first)
        if len(resets) == 3:
            camera.cut()
            camera.start()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            pages.append(answer.read().decode())

    monkeypatch.setattr(demo.StreamMetrics, "observe", watched)
    with MjpegCamera(size=(160, 96)) as camera:
        arguments = ["--fps", 10, "--max-frames", 6, "--metrics-port", 0]
        run("--video-input", camera.address, *arguments, "--output", tmp_path / "out.mp4")
    assert resets[0] and sum(resets) == 2
    assert 'blockcopy_frames_total{stream="door"} 6.0' in pages[-1]
    assert 'blockcopy_reconnects_total{stream="door"} 1.0' in pages[-1]
    assert 'blockcopy_connected{stream="door"} 1.0' in pages[-1]
    assert float(re.search(r"skipped_frames_total.* ([\d.]+)", pages[-1])[1]) > 0
    assert len(decode(tmp_path / "out.mp4")[1]) == 6
    output = capfd.readouterr()
    for text in (output.out, output.err, caplog.text, *pages):
        assert "s3cret" not in text


def test_frames_that_a_gpu_decoded_are_run_compared_and_drawn(run, clip, tmp_path, monkeypatch):
    """Tensors, here of the CPU, which are taken as if it were a GPU."""
    read = demo.VideoFrames.read

    def on_gpu(self, **options):
        for image, seconds, vectors in read(self, **options):
            yield torch.from_numpy(image), seconds, vectors

    arguments = ["--video-input", clip, "--compare-dense", "--max-frames", 3]
    opts = ["MODEL.BLOCKCOPY.POLICY.NAME", "AllBlocks"]
    run(*arguments, "--output", tmp_path / "host.mp4", opts=opts)
    monkeypatch.setattr(demo.VideoFrames, "read", on_gpu)
    lies_on_gpu = "blockcopy_d2.data.pictures._lies_on_gpu"
    monkeypatch.setattr(lies_on_gpu, lambda x: isinstance(x, torch.Tensor))
    run(*arguments, "--output", tmp_path / "gpu.mp4", opts=opts)
    host, gpu = (np.stack(decode(tmp_path / f"{name}.mp4")[1])[:, :96] for name in ("host", "gpu"))
    assert np.abs(host.astype(int) - gpu).mean() < 0.5


@pytest.mark.parametrize(
    "args, message",
    [
        ("--fps 0", "argument --fps: 0 is not a finite number above 0"),
        ("--reconnect nan", "argument --reconnect: nan is not a number of at least 0"),
        ("--metrics-port 70000", "argument --metrics-port: 70000 is neither a port"),
        ("--metrics-port :80", "argument --metrics-port: :80 is neither a port"),
    ],
)
def test_arguments_of_live_sources_are_checked(capsys, args, message):
    with pytest.raises(SystemExit):
        demo.get_parser().parse_args(["--webcam", *args.split()])
    assert message in capsys.readouterr().err


def test_motion_is_drawn_where_asked(run, clip, tmp_path):
    """Draws motion with a legend in the corner, and nothing without an estimator."""
    opts = ["MODEL.BLOCKCOPY.MOTION.NAME", "DISFlow"]
    corners = []
    for flag in ([], ["--draw-motion"]):
        run("--video-input", clip, "--output", tmp_path / "out.mp4", *flag, opts=opts)
        corners.append(decode(tmp_path / "out.mp4")[1][1][:40, -36:].astype(int))
    assert np.abs(corners[1] - corners[0]).mean() > 20
    for flags, name in ([], "none"), (["--dense"], "DISFlow"):
        with pytest.raises(SystemExit, match="--draw-motion has no motion to draw"):
            opts = ["MODEL.BLOCKCOPY.MOTION.NAME", name]
            run("--video-input", clip, "--draw-motion", *flags, opts=opts)


def test_folder_of_frames_is_a_video(run, tmp_path, capsys):
    frames = tmp_path / "frames"
    frames.mkdir()
    for index in range(3):
        Image.new("RGB", (160, 96), (90, 60 * index, 40)).save(frames / f"{index}.png")
    run("--video-input", frames)
    assert "frames: 3 frames" in capsys.readouterr().out


def test_pictures_are_run_for_themselves(run, tmp_path):
    pictures = [tmp_path / "a.png", tmp_path / "b.png"]
    for picture in pictures:
        Image.new("RGB", (160, 96), (90, 120, 40)).save(picture)
    (tmp_path / "out").mkdir()
    run("--input", *pictures, "--output", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]
    assert Image.open(tmp_path / "out" / "a.png").size == (160, 96)


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


def test_a_zoo_config_needs_nothing_of_ours(run_zoo, clip, capsys):
    run_zoo("COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml", "--video-input", clip)
    executed, _ = cells(capsys.readouterr().out, "BlockCopy")
    assert 0 < float(executed.rstrip("%")) < 100


@pytest.fixture
def run_zoo(folder, monkeypatch):
    """Runs a yaml of the zoo, a few channels wide, on weights in a file."""

    def run(name, *args):
        opts = [*NARROW, "INPUT.MIN_SIZE_TEST", "96", "MODEL.BLOCKCOPY.BLOCK_SIZE", "32"]
        weights = folder / "zoo.pth"
        torch.save(
            {"model": build_model(load_config(config_path(name), opts)).state_dict()}, weights
        )
        opts += ["MODEL.WEIGHTS", str(weights)]
        arguments = ["--config-file", name, *args, "--target", "0.4", "--opts", *opts]
        monkeypatch.setattr("sys.argv", ["demo.py", *map(str, arguments)])
        demo.main()

    return run


def test_a_lazy_config_runs_beside_its_dense_model(tmp_path, clip, monkeypatch, capsys):
    config, opts = write_lazy_config(tmp_path)
    opts.append("blockcopy.policy=AllBlocks")
    arguments = ["--config-file", config, "--video-input", clip, "--max-frames", 3]
    arguments += ["--confidence-threshold", 0.01, "--compare-dense", "--opts", *opts]
    monkeypatch.setattr("sys.argv", ["demo.py", *map(str, arguments)])
    demo.main()
    executed, _, _, ap, _ = cells(capsys.readouterr().out, "BlockCopy")
    assert executed == "100.0%" and float(ap) > 99


def test_trained_weights_are_those_of_the_zoo():
    name = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
    url = trained_weights(name)
    assert url.startswith("https://") and url.endswith("model_final_f10217.pkl")
    assert trained_weights(CONFIG) is None
    assert trained_weights("Base-RCNN-FPN.yaml") is None
    assert load_video_config(name).MODEL.WEIGHTS == url
    assert load_video_config(name, ["MODEL.WEIGHTS", "mine.pth"]).MODEL.WEIGHTS == "mine.pth"
    cfg = load_video_config("COCO-Detection/fcos_R_50_FPN_1x.py")
    assert cfg.train.init_checkpoint.endswith(".pkl")


@pytest.mark.parametrize(
    "args, opts, message",
    [
        (["--video-input", "missing.mp4"], [], "missing.mp4 does not exist"),
        (["--video-input", "CLIP", "--output", "missing/out.mp4"], [], "Cannot write the video"),
        (["--video-input", "CLIP"], ["MODEL.BLOCKCOPY.TARGTE", "1"], "MODEL.BLOCKCOPY.TARGET"),
        (["--video-input", "CLIP"], ["MODEL.WEIGHTS", "missing.pth"], "missing.pth do not exist"),
        (["--video-input", "CLIP", "--dense"], ["MODEL.WEIGHTS", "no.pth"], "no.pth do not exist"),
        (
            ["--video-input", "CLIP", "--compare-dense"],
            ["MODEL.META_ARCHITECTURE", "SemanticSegmentor"],
            "SemanticSegmentor finds none",
        ),
        (["--video-input", "CLIP"], ["MODEL.BLOCKCOPY.SCENE_CUT", "nan"], "SCENE_CUT is 'nan'"),
        (["--input", "a.png", "b.png"], [], "2 pictures need --output FOLDER"),
        (
            ["--video-input", "CLIP", "--output", "rtsp://u:s3cret@h/out.mp4"],
            [],
            r"the video rtsp://\*\*\*@h/out.mp4: it is an address",
        ),
        (
            ["--video-input", "CLIP", "--config-file", "http://u:s3cret@h/a.yaml"],
            [],
            r"The config is an address \(http://...\)",
        ),
    ],
)
def test_bad_input_is_named(run, clip, args, opts, message):
    args = [clip if arg == "CLIP" else arg for arg in args]
    with pytest.raises(SystemExit, match=message) as caught:
        run(*args, opts=opts)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("mode", [[], ["--dense"], ["--compare-dense"]])
def test_rotated_boxes_without_their_operators_are_named(run, clip, mode, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="error: RRPN needs rotated boxes"):
        run("--video-input", clip, *mode, opts=ROTATED)


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL.WEIGHTS", "x.pth"], "have the form KEY=VALUE"),
        (["blockcopy.tagret=1"], "Unknown config key blockcopy.tagret; expected target"),
        (["blockcopy.target=2"], "blockcopy.target is 2.0; it must be a finite number within"),
        (["model.no_such=1"], "cannot be built: .* unexpected keyword argument 'no_such'"),
        (["train.init_checkpoint="], "MODEL.WEIGHTS is empty"),
    ],
)
def test_bad_overrides_of_a_lazy_config_are_named(tmp_path, clip, monkeypatch, opts, message):
    config, own = write_lazy_config(tmp_path)
    arguments = ["--config-file", config, "--video-input", str(clip), "--opts", *own, *opts]
    monkeypatch.setattr("sys.argv", ["demo.py", *arguments])
    with pytest.raises(SystemExit, match=message):
        demo.main()


@pytest.mark.parametrize(
    "args",
    [
        ["--target", "1.5"],
        ["--max-frames", "0"],
        ["--max-frames", "rtsp://u:s3cret@h/door"],
        ["--compare-dense", "--dense"],
        [],
    ],
)
def test_bad_arguments_are_refused(run, clip, args, capsys):
    source = ["--video-input", clip] if args else []
    with pytest.raises(SystemExit):
        run(*source, *args)
    error = capsys.readouterr().err
    assert args[0] in error if args else "--video-input" in error
    assert "s3cret" not in error


def test_results_are_written_as_data(run, clip, tmp_path, capsys):
    results = tmp_path / "clip.json"
    run("--video-input", clip, "--results", results, "--max-frames", 3)
    rows = json.loads(results.read_text())
    assert {row["image_id"] for row in rows} == {0, 1, 2} and rows[0]["segmentation"]["counts"]
    assert sorted({row["time"] for row in rows}) == pytest.approx([0, 1 / 12, 2 / 12], abs=1e-5)
    assert all(row["score"] >= 0.05 for row in rows)
    assert f"Wrote {len(rows)} rows to {results}" in capsys.readouterr().out


def test_interrupt_leaves_whole_results(run, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(demo.VideoFrames, "read", broken_after(2, KeyboardInterrupt()))
    run("--video-input", clip, "--dense", "--results", tmp_path / "clip.json")
    rows = json.loads((tmp_path / "clip.json").read_text())
    assert {row["image_id"] for row in rows} == {0, 1}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--results", "clip.txt"], "has no known ending"),
        (["--results", "clip.ytvis.json"], "add --track"),
        (["--results", "clip.mp4.json", "--output", "clip.mp4.json"], "suffix names no video"),
        (["--results", "missing/clip.json"], "There is no folder"),
        (["--track"], "--track needs --results FILE"),
        (["--dense", "--area", "0,0 9,0 9,9"], "leave --dense out"),
        (["--area", "0,0 nan,0 9,9"], "not finite"),
        (["--never", "900,0 990,0 990,99"], "no pixel of the picture"),
    ],
)
def test_results_and_regions_that_cannot_be_say_why(run, clip, monkeypatch, arguments, message):
    monkeypatch.chdir(clip.parent)
    with pytest.raises(SystemExit, match=message):
        run("--video-input", clip, *arguments)
    assert os.listdir() == ["clip.mp4"]


def test_results_do_not_replace_the_video(run, clip):
    video = clip.rename(clip.with_suffix(".json"))
    with pytest.raises(SystemExit, match="would be lost"):
        run("--video-input", video, "--results", video)


def test_a_region_is_drawn_and_held(run, clip, tmp_path, capsys):
    half = ["--area", "80,0 160,0 160,96 80,96", "--always", "100,10 110,10 110,20"]
    unseen, opts = ["--confidence-threshold", "1"], ["MODEL.BLOCKCOPY.POLICY.NAME", "AllBlocks"]
    run("--video-input", clip, "--output", tmp_path / "out.mp4", *half, *unseen, opts=opts)
    # 3 of 4 columns of blocks: the second one touches the area.
    assert cells(capsys.readouterr().out, "BlockCopy")[0] == "75.0%"
    frame = decode(tmp_path / "out.mp4")[1][3].astype(int)
    never, free = frame[:90, :40], frame[40:90, 100:150]
    assert (never.max(axis=2) - never.min(axis=2)).mean() < 8
    assert (free.max(axis=2) - free.min(axis=2)).mean() > 20
