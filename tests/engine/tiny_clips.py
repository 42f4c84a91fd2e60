"""The data set of conftest.py, and files that runs leave behind."""

import json

DATASET = "tiny_clips"
CLIPS, FRAMES = 3, 6


def read_summary(tmp_path):
    return json.loads((tmp_path / "output" / "blockcopy_summary.json").read_text())


def read_metrics(folder):
    lines = (folder / "metrics.json").read_text().splitlines()
    return [json.loads(line) for line in lines]
