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


def test_it_runs_on_a_cpu(tmp_path, frames, monkeypatch, capsys):
    model = small_rcnn(panoptic=True)
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setattr(heads, "WANTED_DETECTIONS", 5)
    monkeypatch.setattr(heads, "build", lambda config, device: model)
    command = ["--device", "cpu", "--dtype", "fp32", "--frames", frames, "--size", 96, 160]
    command += ["--rounds", 2, "--length", 1, "--models", "panoptic"]
    monkeypatch.setattr("sys.argv", ["benchmarks.heads", *map(str, command)])
    heads.main()
    (file,) = tmp_path.glob("*_heads_fp32.json")
    results = json.loads(file.read_text())
    assert results["size"] == [96, 160]
    found = results["panoptic"]
    variants = {"stock", "operators", "graph", "unmerged"}
    assert set(found["quartiles_ms"]) == variants
    assert all(found[f"{variant}_ms"] > 0 for variant in variants)
    assert found["detections"]["stock"] > 0 and 0 < found["executed"] < 1
    assert found["stages_ms"]["heads"] > 0 and "unmerged" in capsys.readouterr().out
