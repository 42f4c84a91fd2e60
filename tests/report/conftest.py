import numpy as np
import pytest

from blockcopy_d2.engine import load_config
from blockcopy_d2.resources import config_path
from blockcopy_d2.visualization import VideoWriter
from tests.small_model import CONFIG, small_model_opts


@pytest.fixture(scope="session")
def report_folder(tmp_path_factory):
    """Holds clip.mp4, a few frames of 64x96 with a square that moves, and the weights."""
    folder = tmp_path_factory.mktemp("report")
    with VideoWriter(folder / "clip.mp4", fps=12) as video:
        for index in range(6):
            image = np.full((64, 96, 3), 90, dtype=np.uint8)
            image[10:40, 5 + 10 * index : 30 + 10 * index] = (40, 90, 220)
            video.write(image)
    return folder


@pytest.fixture(scope="session")
def small_config(report_folder):
    def build(*opts):
        opts = ["MODEL.BLOCKCOPY.ENABLED", "True", *small_model_opts(report_folder), *opts]
        return load_config(config_path(CONFIG), opts)

    return build
