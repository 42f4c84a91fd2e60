"""The benchmark of architectures runs on a CPU, but for its graphs, and writes what it promises."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import heads, measure
from tests.modeling.fixed_shape.models import small_rcnn


@pytest.fixture
def frames(tmp_path):
    for index in range(2):
        image = np.random.default_rng(index).integers(0, 256, (96, 160, 3), dtype=np.uint8)
        (tmp_path / "frames").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "frames" / f"{index}.png")
    return tmp_path / "frames"


@pytest.fixture
def run(tmp_path, frames, monkeypatch):
    model = small_rcnn(panoptic=True)
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setattr(heads, "WANTED_DETECTIONS", 5)
    monkeypatch.setattr(heads, "build", lambda config, device: model)
    command = ["--device", "cpu", "--dtype", "fp32", "--frames", frames, "--size", 96, 160]
    command += ["--rounds", 1, "--length", 1, "--models", "panoptic"]

    def run(*options):
        monkeypatch.setattr("sys.argv", ["benchmarks.heads", *map(str, command), *options])
        heads.main()
        return model

    return run


def test_compiling_writes_nothing(tmp_path, run, capsys):
    run("--compile-only")
    assert "all variants ran" in capsys.readouterr().out
    assert not list(tmp_path.glob("*_heads_*.json"))


def test_it_runs_on_a_cpu(tmp_path, run, capsys):
    model = run()
    threshold = model.roi_heads.box_predictor.test_score_thresh
    assert threshold == model.combine_instances_score_thresh
    (file,) = tmp_path.glob("*_heads_fp32.json")
    results = json.loads(file.read_text())
    assert results["size"] == [96, 160]
    found = results["panoptic"]
    variants = {"stock", "operators", "graph", "unmerged"}
    assert set(found["quartiles_ms"]) == variants
    assert all(found[f"{variant}_ms"] > 0 for variant in variants)
    assert found["detections"]["stock"] > 0 and 0 < found["executed"] < 1
    out = capsys.readouterr().out
    assert found["stages_ms"]["heads"] > 0 and "unmerged" in out
    assert "panoptic: thresholds set" in out and "panoptic: timed" in out
