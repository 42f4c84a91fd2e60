import itertools
import math

import numpy as np
import pytest
import torch

from blockcopy_d2.data import FrameReadError, VideoFrames
from blockcopy_d2.engine import VideoPredictor
from blockcopy_d2.report import record_video
from blockcopy_d2.report.macs import StageMacs
from blockcopy_d2.report.page import is_plain
from blockcopy_d2.sparse import BlockGrid

THRESHOLD = 0.05


@pytest.fixture
def record(report_folder, small_config):
    def record(*opts, **options):
        video = VideoFrames(report_folder / "clip.mp4")
        predictor = VideoPredictor(small_config(*opts))
        return record_video(predictor, video, score_threshold=THRESHOLD, **options)

    return record


def test_all_blocks_agree_with_dense(record):
    recording = record("MODEL.BLOCKCOPY.POLICY.NAME", "AllBlocks", max_frames=3, targets=(0.5,))
    (run,) = recording.runs
    assert run is recording.main and run.target is None and recording.frames == 3
    assert run.executed == [1, 1, 1] and recording.executed == 1
    assert recording.metrics == ("AP50", "AP")
    assert run.scores["AP"] > 99 and min(run.agreement) > 99
    assert run.age == [(0, 0)] * 3 and np.all(run.block_share == 1)
    for name, dense in recording.dense_macs.items():
        assert run.macs[name] == dense, name


def test_no_blocks_grow_old_and_agree_less(record):
    recording = record(
        "MODEL.BLOCKCOPY.POLICY.NAME", "NoBlocks", "MODEL.BLOCKCOPY.SCENE_CUT", "0.0"
    )
    run = recording.main
    assert run.executed == [1, 0, 0, 0, 0, 0] and recording.executed == 0
    assert run.age == [(age, age) for age in range(6)]
    assert run.macs["backbone"][1:] == [0] * 5 and run.macs["backbone"][0] > 0
    assert run.scores["AP50"] < 99 and run.agreement[0] > 99


def test_targets_run_from_the_same_start(record):
    opts = ["MODEL.BLOCKCOPY.POLICY.NAME", "RandomBlocks", "MODEL.BLOCKCOPY.TARGET", "0.0"]
    recording = record(*opts, targets=(1.0, 0.0, 0.5))
    assert [run.target for run in recording.runs] == [0.0, 0.5, 1.0]
    assert recording.main is recording.runs[0]
    none, half, every = (run.executed[1:] for run in recording.runs)
    assert none == [0] * 5 and every == [1] * 5 and 0 < sum(half) < 5
    assert recording.runs[2].scores["AP"] > 99
    for run in recording.runs:
        stages = [sum(times) for times in zip(*run.stages.values())]
        assert stages == pytest.approx(run.seconds, rel=1e-6)


def test_a_policy_that_learns_is_compared_with_plain_differences(record):
    opts = ["MODEL.BLOCKCOPY.POLICY.NAME", "ExpectedGain", "MODEL.BLOCKCOPY.TARGET", "0.5"]
    recording = record(*opts, targets=(1.0,), max_frames=4)
    plain = recording.difference
    assert plain.target == 0.5 and [run.target for run in recording.runs] == [0.5, 1.0]
    assert plain.executed[1:] == [0.5] * 3 and set(plain.scores) == set(recording.metrics)
    metric = recording.metrics[0]
    for loss, expected in ((-1.0, True), (0.4, True), (0.6, False), (math.nan, False)):
        recording.main.scores[metric], plain.scores[metric] = 50.0 + loss, 50.0
        assert is_plain(recording) is expected, loss
    assert record(*opts, max_frames=1).difference is None
    opts[1] = "RandomBlocks"
    assert record(*opts, targets=(1.0,), max_frames=1).difference is None


def test_a_broken_video_gives_what_there_was(record, monkeypatch):
    frames = [np.full((64, 96, 3), 90, dtype=np.uint8)] * 2

    def broken(self, vectors=False):
        yield from zip(frames, (0.0, 0.1), (None, None))
        raise FrameReadError("clip.mp4", "clip", 2, "it is broken")

    monkeypatch.setattr(VideoFrames, "read", broken)
    recording = record()
    assert recording.frames == 2 and "it is broken" in recording.failure


def test_an_interrupted_frame_does_not_count(record):
    calls = itertools.count()

    def draw(image, dense, seconds, result, own_seconds, scale, shown_at):
        if next(calls) == 2:
            raise KeyboardInterrupt

    recording = record(draw=draw)
    run = recording.main
    assert recording.frames == 3 and len(run.seconds) == len(recording.dense_seconds) == 3


def test_outputs_that_cannot_be_compared_are_named(record, monkeypatch):
    monkeypatch.setattr(
        "blockcopy_d2.modeling.BlockCopyVideoModel.forward", lambda self, x: [{"proposals": None}]
    )
    with pytest.raises(ValueError, match="proposals.*compares 'instances' or 'sem_seg'"):
        record()


@pytest.mark.parametrize("seed", range(3))
def test_stages_add_up_to_what_the_engine_counts(small_config, seed):
    predictor = VideoPredictor(small_config())
    model = predictor.model
    macs = StageMacs(model)
    image = np.full((64, 96, 3), 90, dtype=np.uint8)
    inputs = predictor.mapper(image)
    macs.measure_layers(inputs)
    stream = model.init_state()
    full = model.step(inputs, stream).grid
    active = torch.rand(full.active.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    grid = BlockGrid(active, block_size=model.block_size, image_size=full.image_size)
    for some in (grid, full, BlockGrid.empty(block_size=64, image_size=full.image_size)):
        result = model.step(inputs, stream, grid=some)
        executed = macs.executed(result)
        in_blocks = sum(executed[name] for name in ("backbone", "FPN", "RPN"))
        assert in_blocks == pytest.approx(result.macs, rel=1e-6)
        assert executed["RoI heads"] > 0 and not math.isnan(executed["RoI heads"])


def test_other_targets_move_as_the_first_one_does(record):
    recording = record(
        "MODEL.BLOCKCOPY.POLICY.NAME", "RandomBlocks", "MODEL.BLOCKCOPY.MOTION.NAME", "DISFlow",
        targets=(0.5,), max_frames=3,
    )  # fmt: skip
    assert len(recording.runs) == 2
    for run in recording.runs:
        assert len(run.stages["motion"]) == 3 and all(x > 0 for x in run.stages["motion"])
