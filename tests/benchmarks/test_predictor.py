"""The end-to-end benchmark runs wherever Detectron2 does, and writes the keys that it promises."""

import json
import runpy
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks import measure, predictor
from tests.small_model import small_model_opts


def test_it_runs_on_a_cpu(tmp_path, monkeypatch, capsys):
    frames = tmp_path / "frames"
    frames.mkdir()
    for index in range(2):
        image = np.random.default_rng(index).integers(0, 256, (96, 160, 3), dtype=np.uint8)
        Image.fromarray(image).save(frames / f"{index}.png")
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    *opts, _, weights = small_model_opts(tmp_path)
    command = ["--device", "cpu", "--dtype", "fp32", "--frames", frames, "--size", 96, 160]
    command += [
        "--rounds",
        2,
        "--name",
        "small",
        "--weights",
        weights,
        "--opts",
        *opts,
        "INPUT.MAX_SIZE_TEST",
        999,
    ]
    monkeypatch.setattr("sys.argv", ["benchmarks.predictor", *map(str, command)])
    predictor.main()
    (file,) = tmp_path.glob("*_predictor_small_fp32.json")
    results = json.loads(file.read_text())
    for name in ("stream", "on_gpu", "call", "file", "default_predictor"):
        assert results[f"{name}_ms"] == results["quartiles_ms"][name]["median"] > 0
    assert results["scale"] == pytest.approx(128 / 96) and results["detections"]["stream"] == 5
    assert "default_predictor" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--device", "cpu"], "--dtype fp16 is for GPUs. On a CPU: --dtype fp32"),
        (
            ["--device", "cpu", "--dtype", "fp32", "--weights", "no.pth"],
            "error: The weights no.pth",
        ),
    ],
)
def test_errors_are_a_line(tmp_path, monkeypatch, arguments, message):
    clip = tmp_path / "clip"
    clip.mkdir()
    Image.new("RGB", (128, 64)).save(clip / "0.png")
    command = ["predictor", *arguments, "--frames", str(clip), "--size", "64", "128"]
    monkeypatch.setattr("sys.argv", command)
    monkeypatch.delitem(sys.modules, "benchmarks.predictor")
    with pytest.raises(SystemExit, match=message):
        runpy.run_module("benchmarks.predictor", run_name="__main__")
