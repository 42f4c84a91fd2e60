"""The benchmark of scene cuts, on drawn frames."""

import json

import numpy as np
from PIL import Image

from benchmarks import scene_cuts


def test_frames_and_scenes(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    texture = np.kron(rng.integers(0, 256, (16, 24, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    pictures = {
        "a0": texture[:128, :256],
        "a1": texture[:128, 16:272],  # The camera turns by two cells of motion.
        "a2": texture[:128, 16:272],
        "b0": 255 - texture[128:, :256],
    }
    videos = {"a": [], "b": []}
    for name, picture in pictures.items():
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
        videos[name[0]].append({"file_name": str(tmp_path / f"{name}.png")})
    monkeypatch.setattr(scene_cuts, "load_videos", lambda name: list(videos.values()))
    monkeypatch.setattr(scene_cuts, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["benchmarks.scene_cuts", "--dataset", "drawn"])
    scene_cuts.main()
    found = json.loads((tmp_path / "scene_cuts_drawn.json").read_text())
    frames, scenes = found["changed"]["frames"], found["changed"]["scenes"]
    assert frames["pairs"] == 2 and scenes["pairs"] == 1
    # Nothing changes in the second pair; in the first one all does, and motion explains it.
    assert frames["in place"][0] == 0.0 and frames["moved"][0] == 0.0
    assert frames["in place"][1] > 0.8 and frames["moved"][1] < 0.2
    assert min(scenes["in place"]) > 0.8 and min(scenes["moved"]) > 0.5
    assert "frames: " in capsys.readouterr().out
