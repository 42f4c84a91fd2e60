"""The protocol on semantic segmentation, with every baseline."""

import json
import sys

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from blockcopy_d2.config import base_config
from blockcopy_d2.data import register_camvid
from blockcopy_d2.engine import load_config
from blockcopy_d2.resources import config_path
from tests.data.test_camvid import write_camvid
from tests.projects.names import PROJECT

CONFIG = "CamVid/swiftnet_R_18_blockcopy.yaml"
OPTS = [
    "MODEL.DEVICE", "cpu",
    "MODEL.FPN.OUT_CHANNELS", "16",
    "MODEL.BLOCKCOPY.BLOCK_SIZE", "32",
    "MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY", "2",
    "DATALOADER.NUM_WORKERS", "0",
    "INPUT.MIN_SIZE_TEST", "72",
]  # fmt: skip
NAME = "tiny_protocol_camvid"
BASELINES = [
    "random",
    "frame_difference",
    "every_second_frame",
    "every_third_frame",
    "half_resolution",
]


@pytest.fixture(autouse=True)
def environment(tmp_path):
    sys.path.insert(0, str(PROJECT))
    write_camvid(tmp_path / "camvid", sequences=("a", "b"), num_frames=4)
    register_camvid(NAME, str(tmp_path / "camvid"), "val")
    yield
    sys.path.remove(str(PROJECT))
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def test_every_baseline_is_scored_by_miou(tmp_path):
    import run_protocol

    cfg = base_config(load_config(config_path(CONFIG), OPTS))
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    output = tmp_path / "output"
    run_protocol.main(
        [
            *["--config-file", CONFIG, "--output", str(output), "--targets", "0.5"],
            *["--warm-clips", "1", "--warm-passes", "2", "--baselines", *BASELINES],
            *["--opts", *OPTS, "MODEL.WEIGHTS", str(tmp_path / "model.pth")],
            *["DATASETS.TRAIN", f"('{NAME}',)", "DATASETS.TEST", f"('{NAME}',)"],
        ]
    )
    results = json.loads((output / "results.json").read_text())
    assert results["metrics"] == ["mIoU"] and results["complete"]
    assert results["clips"] == 2 and results["frames"] == 8 and results["warm_passes"] == 2
    rows = {row["method"]: row for row in results["rows"]}
    assert set(rows) == {"dense", "blockcopy", *BASELINES}
    assert all(0 <= row["mIoU"] <= 100 for row in rows.values())
    # Frames of 3 x 3 blocks (72 x 96 pixels): all blocks run, or none.
    phases = [row["executed_fraction"] for row in rows["every_second_frame"]["phases"]]
    assert phases == pytest.approx([1 / 3, 2 / 3])
    assert rows["half_resolution"]["gmacs"] < 0.5 * rows["dense"]["gmacs"]
    # The policy of tau 0.5 has seen 3 frames twice, and then 6.
    state = torch.load(output / "policy_0.5.pth", weights_only=True)
    assert state["learner"]["frames"] == 6
    table = (output / "results.md").read_text()
    assert "mIoU" in table and "every 2nd frame" in table and "2 times over" in table
    assert (output / "miou_gmacs.png").is_file()
