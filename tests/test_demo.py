import av
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

import demo
from blockcopy_d2.data import FrameReadError
from blockcopy_d2.engine.acceleration import load_video_config
from blockcopy_d2.engine.defaults import load_config
from blockcopy_d2.resources import config_path, trained_weights
from blockcopy_d2.visualization import VideoWriter
from tests.engine.test_acceleration import NARROW
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
    def read(self):
        for _ in range(number):
            yield np.full((96, 160, 3), 90, dtype=np.uint8)
        raise error

    return read


def test_interrupt_leaves_a_playable_video(run, clip, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo.VideoFrames, "__iter__", broken_after(3, KeyboardInterrupt()))
    run("--video-input", clip, "--output", tmp_path / "out.mp4")
    assert len(decode(tmp_path / "out.mp4")[1]) == 3
    assert "3 frames" in capsys.readouterr().out


def test_broken_video_leaves_what_was_read(run, clip, tmp_path, capsys, monkeypatch):
    error = FrameReadError(str(clip), "clip", 3, "its size is 8x8, the video's is 160x96")
    monkeypatch.setattr(demo.VideoFrames, "__iter__", broken_after(3, error))
    with pytest.raises(SystemExit, match="Frame 3 of clip clip cannot be used"):
        run("--video-input", clip, "--output", tmp_path / "out.mp4")
    assert len(decode(tmp_path / "out.mp4")[1]) == 3
    assert "3 frames" in capsys.readouterr().out


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
        (["--input", "a.png", "b.png"], [], "2 pictures need --output FOLDER"),
    ],
)
def test_bad_input_is_named(run, clip, args, opts, message):
    args = [clip if arg == "CLIP" else arg for arg in args]
    with pytest.raises(SystemExit, match=message):
        run(*args, opts=opts)


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL.WEIGHTS", "x.pth"], "have the form KEY=VALUE"),
        (["blockcopy.tagret=1"], "Unknown config key blockcopy.tagret; expected target"),
        (["blockcopy.target=2"], "MODEL.BLOCKCOPY.TARGET is 2.0; it must be within"),
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
    [["--target", "1.5"], ["--max-frames", "0"], ["--compare-dense", "--dense"], []],
)
def test_bad_arguments_are_refused(run, clip, args, capsys):
    source = ["--video-input", clip] if args else []
    with pytest.raises(SystemExit):
        run(*source, *args)
    error = capsys.readouterr().err
    assert args[0] in error if args else "--video-input" in error
