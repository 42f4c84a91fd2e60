"""Areas that are run, and blocks that always or never are."""

import os

import pytest

from tests.demo.outputs import cells, decode


def test_a_region_is_drawn_and_held(run, clip, tmp_path, capsys):
    half = ["--area", "80,0 160,0 160,96 80,96", "--always", "100,10 110,10 110,20"]
    unseen, opts = ["--confidence-threshold", "1"], ["MODEL.BLOCKCOPY.POLICY.NAME", "AllBlocks"]
    run("--video-input", clip, "--output", tmp_path / "out.mp4", *half, *unseen, opts=opts)
    # 3 of 4 columns of blocks: the second one touches the area.
    assert cells(capsys.readouterr().out, "BlockCopy")[0] == "75.0%"
    frame = decode(tmp_path / "out.mp4")[1][3].astype(int)
    never, free = frame[:90, :40], frame[40:90, 100:150]
    assert (never.max(axis=2) - never.min(axis=2)).mean() < 8
    assert (free.max(axis=2) - free.min(axis=2)).mean() > 20


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--dense", "--area", "0,0 9,0 9,9"], "leave --dense out"),
        (["--area", "0,0 nan,0 9,9"], "not finite"),
        (["--never", "900,0 990,0 990,99"], "no pixel of the picture"),
    ],
)
def test_regions_that_cannot_be_say_why(run, clip, monkeypatch, arguments, message):
    monkeypatch.chdir(clip.parent)
    with pytest.raises(SystemExit, match=message):
        run("--video-input", clip, *arguments)
    assert os.listdir() == ["clip.mp4"]
