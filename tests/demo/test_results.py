"""Results as data."""

import json
import os

import pytest

import demo
from tests.demo.outputs import broken_after


def test_results_are_written_as_data(run, clip, tmp_path, capsys):
    results = tmp_path / "clip.json"
    run("--video-input", clip, "--results", results, "--max-frames", 3)
    rows = json.loads(results.read_text())
    assert {row["image_id"] for row in rows} == {0, 1, 2} and rows[0]["segmentation"]["counts"]
    assert sorted({row["time"] for row in rows}) == pytest.approx([0, 1 / 12, 2 / 12], abs=1e-5)
    assert all(row["score"] >= 0.05 for row in rows)
    assert f"Wrote {len(rows)} rows to {results}" in capsys.readouterr().out


def test_interrupt_leaves_whole_results(run, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(demo.VideoFrames, "read", broken_after(2, KeyboardInterrupt()))
    run("--video-input", clip, "--dense", "--results", tmp_path / "clip.json")
    rows = json.loads((tmp_path / "clip.json").read_text())
    assert {row["image_id"] for row in rows} == {0, 1}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--results", "clip.txt"], "has no known ending"),
        (["--results", "clip.ytvis.json"], "add --track"),
        (["--results", "clip.mp4.json", "--output", "clip.mp4.json"], "suffix names no video"),
        (["--results", "missing/clip.json"], "There is no folder"),
        (["--track"], "--track needs --results FILE"),
    ],
)
def test_results_that_cannot_be_say_why(run, clip, monkeypatch, arguments, message):
    monkeypatch.chdir(clip.parent)
    with pytest.raises(SystemExit, match=message):
        run("--video-input", clip, *arguments)
    assert os.listdir() == ["clip.mp4"]


def test_results_do_not_replace_the_video(run, clip):
    video = clip.rename(clip.with_suffix(".json"))
    with pytest.raises(SystemExit, match="would be lost"):
        run("--video-input", video, "--results", video)
