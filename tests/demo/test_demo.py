"""The demo as a user calls it."""

import importlib.util
import itertools
import re
import time
import urllib.request
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

import demo
from blockcopy_d2.data.video_files import VideoFormat
from blockcopy_d2.engine.acceleration import load_video_config
from blockcopy_d2.engine.defaults import load_config
from blockcopy_d2.resources import config_path, trained_weights
from blockcopy_d2.visualization import VideoWriter
from tests.data.cameras import MjpegCamera
from tests.demo.outputs import cells, decode
from tests.engine.test_acceleration import NARROW, ROTATED
from tests.small_model import CONFIG, write_lazy_config


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
