"""Warming and evaluating, from config to files, on a tiny data set in Cityscapes' layout."""

import io
import math

import av
import numpy as np
import pytest
import torch
from detectron2.engine import HookBase
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from blockcopy_d2.data import build_clip_loader
from blockcopy_d2.engine import (
    EvaluationLoop,
    build_video_model,
    evaluate_clips,
    reporting,
    warm_policy,
)
from blockcopy_d2.engine.hooks import ComparisonHook, OnlinePolicyHook
from blockcopy_d2.engine.reporting import FrameDrawer, GridImageHook
from tests.engine.tiny_clips import CLIPS, DATASET, FRAMES, read_metrics, read_summary


def frame_file(root, clip, number):
    (file,) = (root / "leftImg8bit_sequence").rglob(f"aachen_{clip:06d}_{number:06d}_*.png")
    return file


def test_evaluation_compares_scores_and_reports(config, tmp_path):
    results = evaluate_clips(
        config("TEST.BLOCKCOPY.COMPARE", "['stock', 'dense']", "TEST.BLOCKCOPY.OVERLAY_CLIPS", "2")
    )
    assert set(results) == {"segm"}
    summary = read_summary(tmp_path)
    assert summary["frames"] == CLIPS * FRAMES and summary["clips"] == CLIPS
    assert summary["target"] == 0.3 and 0 <= summary["executed_fraction"] <= 1
    for name in ("dense", "blockcopy"):
        assert set(summary[name]) == {"AP", "AP50", "gmacs", "seconds_per_frame"}
        assert summary[name]["AP"] is not None and summary[name]["seconds_per_frame"] > 0
    assert set(summary["stock"]) == {"seconds_per_frame"}
    shares = summary["policy"]
    assert shares["gain_share_oracle"] is None or shares["gain_share_oracle"] >= max(
        shares["gain_share"], shares["gain_share_frame_difference"]
    )
    assert summary["blockcopy"]["AP"] == results["segm"]["AP"]
    assert "failed_clips" not in summary

    with av.open(str(tmp_path / "output" / "overlay.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 2 * FRAMES
        assert video.streams.video[0].codec_context.pix_fmt == "yuv420p"
    metrics = read_metrics(tmp_path / "output")[-1]
    for key in ("executed_fraction", "policy/reward", "policy/entropy", "ms/network", "stock/ms"):
        assert key in metrics
    assert list((tmp_path / "output").glob("events.out.tfevents*"))
    assert (tmp_path / "output" / "policy_final.pth").exists()


def tensorboard_pictures(folder):
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    pictures = events.Images("executed_blocks") if events.Tags()["images"] else []
    return {
        event.step: np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
        for event in pictures
    }


@pytest.mark.parametrize("job", [evaluate_clips, warm_policy])
def test_tensorboard_shows_executed_blocks(config, tmp_path, job):
    policy = () if job is warm_policy else ("MODEL.BLOCKCOPY.POLICY.NAME", "NoBlocks")
    job(config("VIS_PERIOD", "4", *policy))
    pictures = tensorboard_pictures(tmp_path / "output")
    assert sorted(pictures) == [3, 7, 11, 15]
    height, width = 64, 128
    assert all(picture.shape[1] == width for picture in pictures.values())
    assert all(picture.shape[0] > height for picture in pictures.values())


def test_pictures_are_drawn_when_they_are_due(config, tmp_path, monkeypatch):
    drawn = []
    draw = FrameDrawer.draw
    monkeypatch.setattr(FrameDrawer, "draw", lambda *args: drawn.append(args[3]) or draw(*args))
    evaluate_clips(config("VIS_PERIOD", "6", "MODEL.BLOCKCOPY.POLICY.NAME", "NoBlocks"))
    assert drawn == [f"aachen_{clip:06d}_{FRAMES - 1:06d}, frame {FRAMES - 1}" for clip in range(3)]
    drawn.clear()
    evaluate_clips(config("OUTPUT_DIR", str(tmp_path / "none")))
    assert not drawn and not tensorboard_pictures(tmp_path / "none")


def test_a_picture_waits_for_a_frame_that_was_decided(config):
    cfg = config("MODEL.BLOCKCOPY.POLICY.NAME", "NoBlocks")
    loop = EvaluationLoop(build_video_model(cfg)[0], build_clip_loader(cfg, DATASET))
    hook = GridImageHook(FrameDrawer(cfg, DATASET), period=1, max_width=40)
    loop.register_hooks([hook])
    seen = []

    class Watch(HookBase):
        def after_step(self):
            seen.append([picture.shape for _, picture, _ in self.trainer.storage._vis_data])

    loop.register_hooks([Watch()])
    loop.train(max_iter=3)
    assert [len(shapes) for shapes in seen] == [0, 1, 2]
    assert seen[-1][0][0] == 3 and max(seen[-1][0]) == 40


def test_motion_is_shown_where_asked(config, tmp_path, monkeypatch):
    """Motion is in pictures if the key is set, and in metrics whenever something moves."""
    motion = ("MODEL.BLOCKCOPY.MOTION.NAME", "DISFlow", "MODEL.BLOCKCOPY.MOTION.CELL_SIZE", "8")
    drawn = []
    draw = reporting.draw_frame
    monkeypatch.setattr(
        reporting, "draw_frame", lambda *args, **k: drawn.append(k) or draw(*args, **k)
    )
    for key, shown in ((), False), (("TEST.BLOCKCOPY.OVERLAY_MOTION", "True"), True):
        drawn.clear()
        evaluate_clips(config("TEST.BLOCKCOPY.OVERLAY_CLIPS", "1", *motion, *key))
        assert len(drawn) == FRAMES
        for number, options in enumerate(drawn):
            assert ("field" in options) == (shown and number > 0)
            if "field" in options:
                rows, columns = options["field"].shape[1:]
                assert options["cell_size"] == 8 and 8 * rows >= 128 and columns == 2 * rows
    shares = [line["moved_fraction"] for line in read_metrics(tmp_path / "output")]
    assert shares and all(0 <= share <= 1 for share in shares)
    evaluate_clips(config("OUTPUT_DIR", str(tmp_path / "still")))
    assert all("moved_fraction" not in line for line in read_metrics(tmp_path / "still"))


def test_all_blocks_score_and_cost_as_dense(config, tmp_path):
    evaluate_clips(
        config("MODEL.BLOCKCOPY.POLICY.NAME", "AllBlocks", "TEST.BLOCKCOPY.COMPARE", "['dense']")
    )
    summary = read_summary(tmp_path)
    assert summary["executed_fraction"] == 1
    for key in ("AP", "AP50", "gmacs"):
        assert summary["blockcopy"][key] == pytest.approx(summary["dense"][key])
    assert summary["stock"] is None
    assert not (tmp_path / "output" / "policy_final.pth").exists(), "there is nothing to keep"


def test_a_policy_that_does_nothing_costs_first_frames_and_heads(config, tmp_path):
    evaluate_clips(
        config("MODEL.BLOCKCOPY.POLICY.NAME", "NoBlocks", "TEST.BLOCKCOPY.COMPARE", "['dense']")
    )
    summary = read_summary(tmp_path)
    assert summary["executed_fraction"] == 0
    assert summary["blockcopy"]["gmacs"] < 0.5 * summary["dense"]["gmacs"]


def test_a_clip_that_fails_leaves_the_others(config, tmp_path, dataset, caplog):
    frame_file(dataset, 1, 2).write_bytes(b"broken")
    evaluate_clips(config("TEST.BLOCKCOPY.COMPARE", "['dense']"))
    summary = read_summary(tmp_path)
    assert summary["frames"] == (CLIPS - 1) * FRAMES + 2 and summary["clips"] == CLIPS
    (failure,) = summary["failed_clips"]
    assert "aachen_000001_000002" in failure and "aachen_000001_000005" in failure
    assert "The rest of the clip is skipped" in caplog.text
    assert summary["blockcopy"]["AP"] is not None


def test_a_frame_of_another_size_ends_its_clip(config, tmp_path, dataset):
    Image.new("RGB", (64, 64)).save(frame_file(dataset, 0, 4))
    evaluate_clips(config())
    summary = read_summary(tmp_path)
    assert summary["frames"] == CLIPS * FRAMES - 2
    assert "64x64" in summary["failed_clips"][0]


def test_when_no_frame_can_be_read_it_says_so(config, tmp_path, dataset, caplog):
    for clip in range(CLIPS):
        frame_file(dataset, clip, 0).unlink()
    evaluate_clips(config())
    assert "No frame could be run" in caplog.text and "no such file" in caplog.text
    assert not (tmp_path / "output" / "blockcopy_summary.json").exists()


def test_a_warmed_policy_is_saved_and_used(config, tmp_path):
    learner = warm_policy(config())
    path = tmp_path / "output" / "policy_final.pth"
    saved = torch.load(path, weights_only=True)
    # First frames teach nothing.
    assert saved["learner"]["frames"] == CLIPS * (FRAMES - 1)
    assert saved["iteration"] == CLIPS * FRAMES - 1
    assert saved["learner"]["moving_cost"] == learner.state_dict()["moving_cost"]
    assert not any(key.startswith("backbone.bottom_up") for key in saved["model"])

    fresh, _ = build_video_model(config())
    model, loaded = build_video_model(config("MODEL.BLOCKCOPY.POLICY.WEIGHTS", str(path)))
    assert loaded.state_dict()["frames"] == CLIPS * (FRAMES - 1)
    for key, value in model.policy.state_dict().items():
        assert torch.equal(value, saved["model"][key]), key
    weight = "network.head.2.weight"
    assert not torch.equal(fresh.policy.state_dict()[weight], saved["model"][weight])


def test_warming_resumes_where_it_stopped(config, tmp_path):
    warm_policy(config("SOLVER.CHECKPOINT_PERIOD", "7"))
    output = tmp_path / "output"
    (output / "last_checkpoint").write_text("policy_0000006.pth")
    (output / "metrics.json").unlink()
    warm_policy(config("SOLVER.CHECKPOINT_PERIOD", "7"), resume=True)
    saved = torch.load(output / "policy_final.pth", weights_only=True)
    # Seven frames before, two first ones among them; the eighth is a clip's second, but the first
    # this run sees of it.
    assert saved["learner"]["frames"] == 5 + (CLIPS * FRAMES - 7 - 2)
    assert read_metrics(output)[0]["iteration"] >= 7


def test_there_may_be_nothing_to_warm(config):
    with pytest.raises(ValueError, match="RandomBlocks does not learn"):
        warm_policy(config("MODEL.BLOCKCOPY.POLICY.NAME", "RandomBlocks"))
    with pytest.raises(ValueError, match="DATASETS.TRAIN"):
        warm_policy(config("DATASETS.TRAIN", "()"))


def test_frames_that_are_not_finite_never_reach_the_policy(config):
    model, learner = build_video_model(config())

    class SpoiledLoader(list):
        pass

    frames = SpoiledLoader(build_clip_loader(config(), DATASET))
    for index in (3, 9):
        inputs = frames[index][0]
        frames[index] = [{**inputs, "image": inputs["image"].float() * torch.nan}]
    loop = EvaluationLoop(model, frames, learner=learner)
    loop.register_hooks([OnlinePolicyHook()])
    loop.train()
    assert all(torch.isfinite(value).all() for value in model.policy.state_dict().values())
    assert learner.state_dict()["skipped_updates"] > 0
    assert math.isfinite(learner.state_dict()["moving_cost"])


def test_stock_has_no_blockcopy_in_it_and_dense_repeats_it(config):
    from blockcopy_d2.engine.runs import _build_stock

    cfg = config()
    stock = _build_stock(cfg)
    assert not any("blockcopy" in type(module).__module__ for module in stock.modules())
    model, learner = build_video_model(cfg)
    seen = []

    class Compare(HookBase):
        def after_step(self):
            runs = self.trainer.runs
            assert list(runs) == ["blockcopy", "stock", "dense"]
            first, second = (runs[name].output["instances"] for name in ("stock", "dense"))
            torch.testing.assert_close(second.scores, first.scores, rtol=1e-3, atol=1e-4)
            seen.append(len(first))

    loop = EvaluationLoop(model, build_clip_loader(cfg, DATASET), learner=learner)
    loop.register_hooks([OnlinePolicyHook(), ComparisonHook(dense=True, stock=stock), Compare()])
    loop.train()
    assert len(seen) == CLIPS * FRAMES and sum(seen) > 0


def test_missing_data_names_the_folder(config, dataset):
    (dataset / "leftImg8bit_sequence").rename(dataset / "elsewhere")
    with pytest.raises(FileNotFoundError, match="leftImg8bit_sequence"):
        evaluate_clips(config())
