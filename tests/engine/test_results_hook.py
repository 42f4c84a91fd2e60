"""Results of an evaluation as data, a file per clip."""

import json

import pytest
import torch

from blockcopy_d2.engine import EvaluationLoop, RunStopped, build_video_model, evaluate_clips
from blockcopy_d2.engine.results_hook import ResultsHook
from tests.engine.test_runs import frame_file
from tests.engine.tiny_clips import FRAMES


def test_a_file_per_clip_that_did_not_break(config, tmp_path, dataset):
    frame_file(dataset, 1, 3).write_bytes(b"no picture")
    evaluate_clips(config("TEST.BLOCKCOPY.RESULTS", "coco"))
    files = sorted(path.name for path in (tmp_path / "output" / "results").iterdir())
    assert files == [f"aachen_{clip:06d}_000005.json" for clip in (0, 2)]
    rows = json.loads((tmp_path / "output" / "results" / files[0]).read_text())
    assert {row["image_id"] for row in rows} == set(range(FRAMES))
    assert {row["category_id"] for row in rows} <= set(range(8))
    assert rows[0]["segmentation"]["counts"] and "time" not in rows[0]


def test_a_run_that_ends_early_leaves_whole_clips(config, tmp_path):
    class Data(list):
        def __iter__(self):
            for number, batch in enumerate(super().__iter__()):
                if number == FRAMES + 2:
                    raise RunStopped("SIGTERM", 143)
                yield batch

    cfg = config()
    model, _ = build_video_model(cfg)
    frames = [
        {"image": picture, "height": 96, "width": 160, "video_id": f"a/{clip}", "frame_index": n}
        for clip in range(3)
        for n, picture in enumerate(pictures())
    ]
    loop = EvaluationLoop(model, Data([frame] for frame in frames))
    loop.register_hooks([ResultsHook(str(tmp_path / "results"))])
    with pytest.raises(RunStopped):
        loop.train()
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["a_0.json"]


def pictures():
    generator = torch.Generator().manual_seed(0)
    for _ in range(FRAMES):
        yield torch.randint(0, 255, (3, 96, 160), generator=generator, dtype=torch.uint8)


def test_tracks_need_to_be_asked_for(tmp_path):
    with pytest.raises(ValueError, match="add --track"):
        ResultsHook(str(tmp_path), format="ytvis")
    assert not list(tmp_path.iterdir())
