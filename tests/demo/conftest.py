"""A short video, and the demo as a user calls it."""

import numpy as np
import pytest

import demo
from blockcopy_d2.visualization import VideoWriter
from tests.small_model import CONFIG, small_model_opts


@pytest.fixture(scope="session")
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
