"""A tiny data set in Cityscapes' layout, and the config of a run on it."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from blockcopy_d2.data import register_cityscapes_video
from blockcopy_d2.engine import load_config
from blockcopy_d2.resources import config_path
from tests.data.cityscapes_tree import write_clip
from tests.engine.tiny_clips import CLIPS, DATASET, FRAMES
from tests.small_model import CONFIG, small_model_opts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def dataset(tmp_path):
    """Three clips of six frames, the last one labelled."""
    for clip in range(CLIPS):
        write_clip(tmp_path / "clips", f"aachen_{clip:06d}", num_frames=FRAMES)
    register_cityscapes_video(DATASET, str(tmp_path / "clips"), "val")
    yield tmp_path / "clips"
    DatasetCatalog.remove(DATASET)
    MetadataCatalog.remove(DATASET)


@pytest.fixture
def config(folder, tmp_path, dataset):
    def build(*opts):
        return load_config(
            config_path(CONFIG),
            [
                *small_model_opts(folder),
                "MODEL.BLOCKCOPY.ENABLED", "True",
                "MODEL.BLOCKCOPY.BLOCK_SIZE", "64",
                "DATASETS.TRAIN", f"('{DATASET}',)",
                "DATASETS.TEST", f"('{DATASET}',)",
                "DATALOADER.NUM_WORKERS", "0",
                "INPUT.CLIP.NUM_FRAMES", str(FRAMES),
                "OUTPUT_DIR", str(tmp_path / "output"),
                *opts,
            ],
        )  # fmt: skip

    return build
