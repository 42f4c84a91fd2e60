"""The protocol on CityPersons: Tables 1 and 3 of the paper."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from blockcopy_d2.data import register_citypersons_video
from tests.data.cityscapes_tree import write_clip
from tests.data.test_citypersons import write_boxes
from tests.networks.csp.small import OPTS, small_csp

NAME = "tiny_protocol_citypersons"


@pytest.fixture
def people(tmp_path):
    seen = [
        {"label": "pedestrian", "bbox": [left, 5, 20, 52], "bboxVis": [left, 5, 20, height]}
        for left, height in ((5, 52), (35, 40), (65, 20))
    ]
    write_boxes(tmp_path, write_clip(tmp_path, "ulm_000003", num_frames=3), people=seen)
    register_citypersons_video(NAME, str(tmp_path), "val")
    yield
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.mark.usefixtures("project", "people")
def test_one_command_has_every_setting_and_stage(tmp_path):
    import run_protocol

    weights, output = tmp_path / "model.pth", tmp_path / "output"
    torch.save({"model": small_csp().state_dict()}, weights)
    run_protocol.main(
        [
            *["--config-file", "CityPersons/csp_R_50_blockcopy.yaml", "--output", str(output)],
            *["--warm-clips", "0", "--targets", "0.5", "--baselines", "stock", "--opts", *OPTS],
            *["MODEL.WEIGHTS", str(weights), "MODEL.BLOCKCOPY.BLOCK_SIZE", "32"],
            *["DATASETS.TRAIN", f"('{NAME}',)", "DATASETS.TEST", f"('{NAME}',)"],
            *["DATALOADER.NUM_WORKERS", "0", "INPUT.MIN_SIZE_TEST", "64"],
            *["TEST.BLOCKCOPY.SUBMISSION", "True"],
        ]
    )
    results = json.loads((output / "results.json").read_text())
    settings = ["MR", "Bare", "Partial", "Heavy"]
    assert results["metrics"] == settings and results["complete"]
    dense, stock, learned = results["rows"]
    assert [row["method"] for row in results["rows"]] == ["dense", "stock", "blockcopy"]
    for setting in settings:
        assert dense[setting] == stock[setting] and 0 <= learned[setting] <= 100
    assert learned["gmacs_per_stage"]["policy"] > 0 and learned["ms_block_lists"] > 0
    text = (output / "results.md").read_text()
    head = [cell.strip() for cell in text.splitlines()[0].split("|")]
    assert head[4:8] == settings and "All blocks (dense) against stock Detectron2" in text
    # Methods do not replace each other's submission.
    files = {x.parent.name: x for x in output.glob("inference/*/submission_citypersons.json")}
    assert (
        set(files) == {"dense", "stock", "blockcopy_0.5"} and len(list(output.glob("*.json"))) == 1
    )
    for setting in settings:
        for cost in ("gmacs", "ms"):
            assert Image.open(output / f"{setting.lower()}_{cost}.png").width == 960
