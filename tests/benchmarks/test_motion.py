"""The benchmark of motion runs on a CPU, and times its steps."""

import json

import numpy as np
from PIL import Image

from benchmarks import measure, motion
from tests.small_model import small_model_opts


def test_it_runs_on_a_cpu(tmp_path, monkeypatch, capsys):
    frames = tmp_path / "frames"
    frames.mkdir()
    for index in range(2):
        image = np.random.default_rng(index).integers(0, 256, (96, 160, 3), dtype=np.uint8)
        Image.fromarray(image).save(frames / f"{index}.png")
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    command = ["--frames", frames, "--size", 96, 160, "--rounds", 2, "--name", "small", "--opts"]
    command += [*small_model_opts(tmp_path), "MODEL.BLOCKCOPY.BLOCK_SIZE", 32]
    monkeypatch.setattr("sys.argv", ["benchmarks.motion", *map(str, command)])
    motion.main()
    assert "results in" in capsys.readouterr().out
    # Without weights, too.
    monkeypatch.setattr(
        "sys.argv", [*map(str, ["benchmarks.motion", *command]), "MODEL.WEIGHTS", ""]
    )
    motion.main()
    (file,) = tmp_path.glob("cpu_motion_small_fp32.json")
    results = json.loads(file.read_text())["motion"]
    times = results["median_ms"]
    assert {f"estimate {name}" for name in motion.ESTIMATORS} < set(times)
    assert {f"history, moving {share:g}" for share in motion.MOVING} < set(times)
    assert all(value > 0 for value in times.values())
    whole = "estimate DISFlow", "history, moving 1", "caches outputs, executed 0, moving 1"
    found = results["all_cells_moving_ms"]["DISFlow, outputs, executed 0"]
    assert abs(found - sum(times[name] for name in whole)) < 1e-3
    assert "all cells moving" in capsys.readouterr().out
