"""Files of a run that ends early, or whose outputs cannot be scored."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.events import JSONWriter

from blockcopy_d2.data import register_cityscapes_video
from blockcopy_d2.engine import (
    EvaluationLoop,
    RunStopped,
    ScoringError,
    evaluate_clips,
    warm_policy,
)
from blockcopy_d2.evaluation import CityscapesVideoInstanceEvaluator
from tests.data.cityscapes_tree import write_clip
from tests.engine.tiny_clips import CLIPS, DATASET, FRAMES, read_metrics, read_summary

SIGNALS = [signal.SIGINT, signal.SIGTERM]
ALL = CLIPS * FRAMES


@pytest.fixture
def output(tmp_path):
    return tmp_path / "output"


@pytest.fixture
def at_frame(monkeypatch):
    """Makes something happen within a frame, once."""

    def install(frame, happen):
        run_step = EvaluationLoop.run_step

        def step(loop):
            if loop.iter == frame:
                monkeypatch.setattr(EvaluationLoop, "run_step", run_step)
                happen()
            run_step(loop)

        monkeypatch.setattr(EvaluationLoop, "run_step", step)

    return install


def send(number, times=1):
    for _ in range(times):
        os.kill(os.getpid(), number)


def fail():
    raise RuntimeError("of the model")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_stopped_policy_goes_on_where_it_was(config, output, at_frame, number):
    handlers = [signal.getsignal(each) for each in SIGNALS]
    at_frame(7, lambda: send(number))
    with pytest.raises(RunStopped) as stopped:
        warm_policy(config())
    assert stopped.value.exit_code == 128 + number
    assert [signal.getsignal(each) for each in SIGNALS] == handlers
    saved = torch.load(output / "policy_0000007.pth", weights_only=True)
    # Two of the eight frames are the first ones of their clips.
    assert saved["iteration"] == 7 and saved["learner"]["frames"] == 6
    assert not (output / "policy_final.pth").exists()

    warm_policy(config(), resume=True)
    saved = torch.load(output / "policy_final.pth", weights_only=True)
    assert saved["iteration"] == ALL - 1
    # The ninth frame is the first that this run sees of its clip.
    assert saved["learner"]["frames"] == 6 + (ALL - 8 - 2)


def test_a_policy_outlives_an_error(config, output, at_frame):
    at_frame(7, fail)
    with pytest.raises(RuntimeError, match="of the model"):
        warm_policy(config())
    assert torch.load(output / "policy_0000006.pth", weights_only=True)["iteration"] == 6


def test_a_checkpoint_that_was_just_saved_is_not_saved_again(config, output, at_frame):
    at_frame(7, fail)
    with pytest.raises(RuntimeError):
        warm_policy(config("SOLVER.CHECKPOINT_PERIOD", "7"))
    saved = output / "policy_0000006.pth"
    assert [file.name for file in output.glob("*.pth")] == [saved.name]


def test_resuming_a_complete_run_runs_nothing(config, output, caplog):
    warm_policy(config())
    before = (output / "policy_final.pth").read_bytes()
    warm_policy(config(), resume=True)
    assert "nothing left to run" in caplog.text
    assert (output / "policy_final.pth").read_bytes() == before


@pytest.mark.parametrize("number", SIGNALS)
def test_an_evaluation_that_is_stopped_keeps_what_it_measured(config, tmp_path, at_frame, number):
    at_frame(7, lambda: send(number))
    with pytest.raises(RunStopped):
        evaluate_clips(config("MODEL.BLOCKCOPY.POLICY.NAME", "AllBlocks"))
    summary = read_summary(tmp_path)
    assert summary["frames"] == 8 and summary["blockcopy"]["seconds_per_frame"] > 0
    name = signal.Signals(number).name
    assert summary["interrupted"] == [f"{name} after 8 of {ALL} frames"]
    # Its one labelled frame is scored.
    assert summary["blockcopy"]["AP"] is not None and "not_scored" not in summary
    assert read_metrics(tmp_path / "output")[-1]["iteration"] == 7


def test_a_second_signal_ends_it_at_once(config, tmp_path, at_frame):
    at_frame(7, lambda: send(signal.SIGINT, times=2))
    with pytest.raises(RunStopped):
        evaluate_clips(config())
    summary = read_summary(tmp_path)
    assert summary["frames"] == 7 and summary["blockcopy"]["AP"] is None
    assert summary["interrupted"] == [f"SIGINT after 7 of {ALL} frames"]
    assert set(summary["not_scored"]) == {"blockcopy"}


def test_an_error_keeps_what_was_measured(config, tmp_path, at_frame):
    at_frame(7, fail)
    with pytest.raises(RuntimeError, match="of the model"):
        evaluate_clips(config())
    summary = read_summary(tmp_path)
    assert summary["frames"] == 7
    assert summary["interrupted"] == [f"RuntimeError: of the model after 7 of {ALL} frames"]


def test_a_stop_while_scoring_keeps_the_timings(config, tmp_path, monkeypatch):
    def evaluate(self):
        before = read_summary(tmp_path)
        assert before["frames"] == ALL and set(before["not_scored"]) == {"blockcopy"}
        send(signal.SIGTERM)

    monkeypatch.setattr(CityscapesVideoInstanceEvaluator, "evaluate", evaluate)
    with pytest.raises(RunStopped):
        evaluate_clips(config())
    assert read_summary(tmp_path)["frames"] == ALL


def test_a_run_in_another_thread_needs_no_signals(config, tmp_path):
    thread = threading.Thread(target=evaluate_clips, args=(config(),))
    thread.start()
    thread.join()
    assert read_summary(tmp_path)["frames"] == ALL


def test_hooks_end_well_though_another_one_does_not(config, tmp_path, monkeypatch):
    def close(self):
        raise OSError("No space left on device")

    monkeypatch.setattr(JSONWriter, "close", close)
    with pytest.raises(OSError, match="No space"):
        evaluate_clips(config("TEST.BLOCKCOPY.OVERLAY_CLIPS", "1"))
    assert read_summary(tmp_path)["frames"] == ALL
    assert (tmp_path / "output" / "overlay.mp4").exists()


def ground_truth(root):
    (file,) = root.rglob(f"aachen_{1:06d}_*_instanceIds.png")
    return file


@pytest.mark.parametrize(
    "damage", ["cut", pytest.param("empty", marks=pytest.mark.slow), "missing"]
)
def test_outputs_that_cannot_be_scored_keep_their_timings(
    config, tmp_path, dataset, at_frame, damage
):
    file = ground_truth(dataset)

    def spoil():
        content = file.read_bytes()
        file.unlink()
        if damage != "missing":
            file.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")

    at_frame(7, spoil)
    with pytest.raises(ScoringError, match=file.name) as error:
        evaluate_clips(config("TEST.BLOCKCOPY.COMPARE", "['dense']"))
    assert f"{DATASET}, blockcopy: " in str(error.value)
    summary = read_summary(tmp_path)
    assert summary["frames"] == ALL and "interrupted" not in summary
    for name in ("blockcopy", "dense"):
        assert summary[name]["AP"] is None and summary[name]["seconds_per_frame"] > 0
        assert str(file) in summary["not_scored"][name]


def test_one_model_that_cannot_be_scored_leaves_the_other(config, tmp_path, monkeypatch):
    process = CityscapesVideoInstanceEvaluator.process

    def failing(self, inputs, outputs):
        if inputs[0]["labelled"] and self is dense[0]:
            raise ValueError("no such class")
        process(self, inputs, outputs)

    dense = []
    reset = CityscapesVideoInstanceEvaluator.reset
    monkeypatch.setattr(
        CityscapesVideoInstanceEvaluator, "reset", lambda self: (dense.insert(0, self), reset(self))
    )
    monkeypatch.setattr(CityscapesVideoInstanceEvaluator, "process", failing)
    with pytest.raises(ScoringError, match="dense: ValueError: no such class"):
        evaluate_clips(config("TEST.BLOCKCOPY.COMPARE", "['dense']"))
    summary = read_summary(tmp_path)
    assert set(summary["not_scored"]) == {"dense"}
    assert summary["blockcopy"]["AP"] is not None and summary["dense"]["AP"] is None


def test_the_next_data_set_is_run_and_scored(config, output, dataset, at_frame):
    register_cityscapes_video("other_clips", str(dataset), "val")
    file, content = ground_truth(dataset), ground_truth(dataset).read_bytes()

    def spoil():
        file.rename(file.with_suffix(".hidden"))
        # The first data set is scored before frame 2 of the other one.
        at_frame(2, lambda: file.write_bytes(content))

    try:
        at_frame(7, spoil)
        with pytest.raises(ScoringError, match=DATASET) as error:
            evaluate_clips(config("DATASETS.TEST", f"('{DATASET}', 'other_clips')"))
        assert "other_clips" not in str(error.value)
        scored = json.loads((output / "other_clips" / "blockcopy_summary.json").read_text())
        assert scored["blockcopy"]["AP"] is not None
    finally:
        DatasetCatalog.remove("other_clips")
        MetadataCatalog.remove("other_clips")


@pytest.mark.parametrize("job", [evaluate_clips, warm_policy])
def test_results_of_an_earlier_run_do_not_pass_for_this_ones(config, output, job):
    output.mkdir()
    (output / "blockcopy_summary.json").write_text("{}")
    with pytest.raises(FileNotFoundError):
        job(config("MODEL.WEIGHTS", "missing.pth"))
    assert not (output / "blockcopy_summary.json").exists()

    earlier = [output / "metrics.1.json", output / "metrics.json"]
    for number, file in enumerate(earlier):
        file.write_text(f'{{"iteration": {number}}}\n')
    job(config("INPUT.CLIP.NUM_CLIPS", "1"))
    assert earlier[0].read_text() == '{"iteration": 0}\n'
    assert (output / "metrics.2.json").read_text() == '{"iteration": 1}\n'
    assert [line["iteration"] for line in read_metrics(output)] == [FRAMES - 1]


def test_metrics_of_a_run_that_is_resumed_go_on(config, output, at_frame):
    at_frame(7, fail)
    with pytest.raises(RuntimeError):
        warm_policy(config())
    before = read_metrics(output)
    warm_policy(config(), resume=True)
    assert read_metrics(output)[: len(before)] == before
    assert read_metrics(output)[-1]["iteration"] == ALL - 1


_PROGRAM = """
import os, sys
import train_net
from blockcopy_d2.data import register_cityscapes_video
from blockcopy_d2.engine import default_argument_parser, launch
register_cityscapes_video("{dataset}", {root!r}, "val")
launch(train_net.main, default_argument_parser().parse_args(sys.argv[1:]))
"""


def has_metrics(folder):
    file = folder / "metrics.json"
    return file.exists() and file.stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_program_that_is_stopped_with_its_workers(config, output, dataset, number):
    output.mkdir()
    cfg = config("DATALOADER.NUM_WORKERS", "1", "INPUT.CLIP.NUM_FRAMES", "600")
    (output / "job.yaml").write_text(cfg.dump())
    write_clip(dataset, f"aachen_{CLIPS:06d}", num_frames=600)
    program = subprocess.Popen(
        [
            sys.executable,
            "-c",
            _PROGRAM.format(dataset=DATASET, root=str(dataset)),
            "--config-file",
            str(output / "job.yaml"),
        ],
        start_new_session=True,
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 120
        while not has_metrics(output) and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(program.pid, number)
        _, errors = program.communicate(timeout=60)
    finally:
        program.kill()
    assert program.returncode == 128 + number, errors.decode()
    (saved,) = output.glob("policy_*.pth")
    assert torch.load(saved, weights_only=True)["iteration"] == int(saved.stem[-7:]) > 0
