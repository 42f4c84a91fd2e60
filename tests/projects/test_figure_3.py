"""Figure 3 of any video: its rows."""

import argparse
import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from blockcopy_d2.engine import VideoPredictor
from blockcopy_d2.engine.acceleration import load_video_config
from tests.projects.names import PROJECT
from tests.small_model import CONFIG, small_model_opts


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("draw_figure_3", PROJECT / "draw_figure_3.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A folder of five frames of 96x160 with a square that moves; blocks of 64 reach beyond."""
    folder = tmp_path_factory.mktemp("video")
    for index in range(5):
        image = np.full((96, 160, 3), 90, dtype=np.uint8)
        image[20:60, 10 + 20 * index : 50 + 20 * index] = (220, 40, 90)
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def opts(tmp_path_factory):
    size = ["INPUT.MIN_SIZE_TEST", "96", "MODEL.BLOCKCOPY.MOTION.NAME", "none"]
    return [*small_model_opts(tmp_path_factory.mktemp("weights")), *size]


def test_the_picture_is_written(script, video, opts, tmp_path):
    output = tmp_path / "figure.png"
    args = ["--config-file", CONFIG, "--video-input", str(video), "--frames", "2"]
    script.main([*args, "--output", str(output), "--opts", *opts])
    width, height = Image.open(output).size
    assert width == round(6.6 * 150) and height > width
    with pytest.raises(SystemExit, match="has 5 frames; --first 4 --frames 2 asks for 6"):
        script.main([*args, "--first", "4", "--output", str(output), "--opts", *opts])
    with pytest.raises(SystemExit, match="has 5 frames; --first 9 --frames 2 asks for 11"):
        script.main([*args, "--first", "9", "--output", str(output), "--opts", *opts])
    for name in ("figure", "figure.xyz"):  # Before the video is run.
        with pytest.raises(SystemExit, match="must end in one of .png"):
            script.main([*args, "--first", "9", "--output", str(tmp_path / name), "--opts", *opts])


def test_rows_are_those_of_the_model(script, video, opts):
    predictor = VideoPredictor(load_video_config(CONFIG, opts))
    args = argparse.Namespace(first=0, frames=5, confidence_threshold=0.0)
    state, shares, gained = None, set(), []
    for number, frame in enumerate(script.columns(predictor, str(video), args, None)):
        picture = np.asarray(Image.open(video / f"{number}.png"))
        assert frame["number"] == number and np.array_equal(frame["frame"], picture)
        # Executed blocks are tinted. A policy pixel is two of the picture.
        tinted = frame["execution grid"][::64, ::64].astype(int) - picture[::64, ::64]
        active = torch.from_numpy((tinted[..., 0] > tinted[..., 2] + 5)[None, None])
        assert frame["executed"] == pytest.approx(active.float().mean().item())
        shares.add(frame["executed"])
        pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1).float()[None]
        pooled = F.avg_pool2d(pixels, 2)
        executed = active.repeat_interleave(32, 2).repeat_interleave(32, 3)[..., :48, :80]
        state = pooled if state is None else torch.where(executed, pooled, state)
        found = torch.from_numpy(frame["frame state"].copy()).permute(2, 0, 1).float()
        assert (found - state[0]).abs().max() <= 1
        assert frame["information gain"].shape == (2, 3) and frame["side"] == 64
        gained.append(frame["information gain"].any())
        assert not np.array_equal(frame["output"], picture)
    assert number == 4 and len(shares) > 1
    assert not gained[0] and any(gained)
