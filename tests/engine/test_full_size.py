"""The Cityscapes config at the size of Cityscapes, on drawn clips: the real ones have a licence."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from blockcopy_d2.config import base_config
from blockcopy_d2.data import register_cityscapes_video
from blockcopy_d2.data.streetclips import write_split
from blockcopy_d2.engine import evaluate_clips, load_config
from blockcopy_d2.resources import config_path

CONFIG = "Cityscapes/mask_rcnn_R_50_FPN_blockcopy.yaml"
DATASET = "full_size_clips"


@pytest.fixture
def dataset(tmp_path):
    root = str(tmp_path / "clips")
    write_split(root, "val", num_clips=1, height=1024, width=2048, workers=1)
    register_cityscapes_video(DATASET, root, "val")
    yield DATASET
    DatasetCatalog.remove(DATASET)
    MetadataCatalog.remove(DATASET)


@pytest.mark.slow
def test_cityscapes_config_runs_at_full_size(dataset, tmp_path):
    opts = [
        "DATASETS.TEST", f"('{dataset}',)",
        "DATALOADER.NUM_WORKERS", "0",
        "INPUT.CLIP.NUM_FRAMES", "3",
        "TEST.BLOCKCOPY.COMPARE", "['dense']",
        "TEST.BLOCKCOPY.OVERLAY_CLIPS", "1",
        "MODEL.WEIGHTS", str(tmp_path / "random.pth"),
        "OUTPUT_DIR", str(tmp_path / "output"),
    ]  # fmt: skip
    cfg = load_config(config_path(CONFIG), opts)
    (tmp_path / "output").mkdir()
    torch.save({"model": build_model(base_config(cfg)).state_dict()}, cfg.MODEL.WEIGHTS)

    evaluate_clips(cfg)
    summary = json.loads((tmp_path / "output" / "blockcopy_summary.json").read_text())
    assert summary["frames"] == 3 and "failed_clips" not in summary
    # Backbone and RPN take 384 of them; how many the heads take depends on the random weights.
    assert summary["dense"]["gmacs"] > 384
    assert summary["blockcopy"]["gmacs"] < summary["dense"]["gmacs"]
    assert (tmp_path / "output" / "overlay.mp4").stat().st_size > 0
