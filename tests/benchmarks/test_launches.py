"""The count of launches, on a small model and a CPU."""

import pytest
import torch

from benchmarks import launches
from blockcopy_d2.modeling.running import graph as frame_graph
from tests.small_model import CONFIG, small_model_opts


def test_both_kinds_of_frames_are_counted():
    frame = [("convolution", 5.0), ("copy", 1.0), ("convolution", 2.5)]
    counted = launches.count_launches([frame, [*frame, ("update", 9.0)], frame])
    assert counted["launches"] == 3 and counted["launches_with_update"] == 4
    assert counted["kernels"] == [
        {"name": "convolution", "launches": 2, "us": 7.5},
        {"name": "copy", "launches": 1, "us": 1.0},
    ]


@pytest.mark.slow
def test_what_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(frame_graph, "_has_graphs", lambda model: True)
    ticks = []

    def launches_of(tick, inputs):
        ticks.append(inputs)
        return [("kernel", 1.0)] * (2 if tick(inputs).grid.active.float().mean() == 0.25 else 1)

    monkeypatch.setattr(launches, "_launches_of", launches_of)
    opts = ["--config-file", CONFIG, "--block-size", "64", "--share", "0.3", "--opts"]
    args = launches._parser().parse_args([*opts, *map(str, small_model_opts(tmp_path))])
    assert args.streams == [1] and args.motion == ["none", "BlockMatching"]
    cfg = launches._config(args, "BlockMatching")
    assert cfg.MODEL.BLOCKCOPY.MOTION.NAME == "BlockMatching"
    cfg = launches._config(args, "none")
    assert cfg.MODEL.BLOCKCOPY.POLICY.NAME == "ExpectedGain" and cfg.MODEL.WEIGHTS == ""
    images = list(torch.randint(0, 256, (2, 3, 128, 256), dtype=torch.uint8))
    found = launches.measure(cfg, images, 2, torch.float32, share="0.3", device="cpu")
    assert len(ticks) == 2 and all(len(inputs) == 2 for inputs in ticks)
    # Two of 2 x 4 blocks of every frame.
    assert found["launches"] == 2
    assert {"policy", "network", "heads"} <= set(found["stages_ms"])
    assert found["stages_ms"]["network"] > 0
    second = launches.measure_second_stage(cfg, images, 2, torch.float32, rounds=2)
    assert set(second) == {"until_count_us", "whole_us"} and min(second.values()) > 0
