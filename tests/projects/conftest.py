import importlib
import json
import sys

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from blockcopy_d2.data import register_cityscapes_video
from tests.data.cityscapes_tree import write_clip
from tests.projects.names import NAMES, PROJECT
from tests.small_model import CONFIG, small_model_opts


@pytest.fixture(scope="module")
def project():
    """The project's modules, as its scripts import them."""
    sys.path.insert(0, str(PROJECT))
    yield
    sys.path.remove(str(PROJECT))


@pytest.fixture
def clips(tmp_path):
    """Two clips of three frames per split."""
    for split, name in NAMES.items():
        for index in range(2):
            write_clip(tmp_path / "data", f"a_{index:06d}", split=split, num_frames=3)
        register_cityscapes_video(name, str(tmp_path / "data"), split)
    yield tmp_path / "data"
    for name in NAMES.values():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture
def run(project, clips, weights, tmp_path):
    """Runs a script in this process; the output goes to tmp_path / "output"."""

    def run(*args, opts=(), script="run_protocol"):
        common = [
            "DATASETS.TRAIN", f"('{NAMES['train']}',)",
            "DATASETS.TEST", f"('{NAMES['val']}',)",
            "DATALOADER.NUM_WORKERS", "0",
            "MODEL.BLOCKCOPY.BLOCK_SIZE", "32",
            "MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY", "2",
        ]  # fmt: skip
        opts = [*small_model_opts(weights), *common, *opts]
        argv = ["--config-file", CONFIG, "--output", tmp_path / "output", *args, "--opts", *opts]
        importlib.import_module(script).main([str(arg) for arg in argv])

    return run


@pytest.fixture
def read(tmp_path):
    """Reads results.json."""
    return lambda: json.loads((tmp_path / "output" / "results.json").read_text())


@pytest.fixture
def results_file(tmp_path):
    rows = [
        {"method": "dense", "target": None, "AP": 45.0, "AP50": 70.0, "gmacs": 77.0},
        {"method": "blockcopy", "target": 0.3, "AP": 44.5, "AP50": 69.0, "gmacs": 38.0},
        {"method": "random", "target": 0.3, "AP": None, "AP50": None, "gmacs": 30.0},
    ]
    results = {
        "config_file": "c.yaml",
        "dataset": "some_val",
        "train_dataset": "some_train",
        "warm_clips": 7,
        "warm_passes": 2,
        "metrics": ["AP", "AP50"],
        "clips": 3,
        "frames": 60,
        "complete": True,
        "date": "2030-01-02T03:04:05+00:00",
        "machine": {"processor": "P", "threads": 2, "device": "Some GPU"},
        "versions": {"torch": "9.9"},
        "rows": [{**row, "ms_median": 100.0, "ms_mean": 101.0} for row in rows],
    }
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    return path
