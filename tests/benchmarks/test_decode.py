"""The benchmark of decoding, on a small file."""

import json

import numpy as np
import pytest

from benchmarks import decode, measure
from blockcopy_d2.visualization.video import VideoWriter

pytest.importorskip("av", reason="needs PyAV")


def test_it_times_the_frames_of_a_file(tmp_path, monkeypatch, capsys):
    file = tmp_path / "clip.mp4"
    with VideoWriter(file, 25.0) as writer:
        for index in range(5):
            writer.write(np.full((64, 96, 3), 40 * index, np.uint8))
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    command = ["benchmarks.decode", "--video", str(file), "--rounds", "2"]
    monkeypatch.setattr("sys.argv", command)
    decode.main()
    found = json.loads((tmp_path / "cpu_decode_pyav.json").read_text())
    assert found["video"] == "own" and found["date"] and found["cpu"]
    times = found["64x96"]
    assert times["frames"] == 5 and times["ms"] > 0 and times["core_ms"] > 0
    assert times["megabits"] == round(8e-6 * file.stat().st_size * 25 / 5, 1)
    assert "64x96" in capsys.readouterr().out


def test_the_clip_that_it_draws(tmp_path, monkeypatch):
    shown = [np.full((64, 96, 3), 40 * index, np.uint8) for index in range(3)]

    def read_clip(folder, size, device):
        assert folder is None and size == (64, 96)
        return [decode.torch.from_numpy(x.transpose(2, 0, 1).copy()) for x in shown]

    monkeypatch.setattr(decode, "read_clip", read_clip)
    decode.write_clip(str(tmp_path / "clip.mp4"), (64, 96))
    size, found = decode.measure(str(tmp_path / "clip.mp4"), rounds=1)
    assert size == (64, 96) and found["frames"] == 3
