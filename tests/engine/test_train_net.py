"""train_net.py as a user calls it."""

import errno
import json
import logging

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

import train_net
from blockcopy_d2.data import register_cityscapes_video, register_labelled_frames
from blockcopy_d2.engine import default_argument_parser, defaults
from tests.data.cityscapes_tree import write_clip
from tests.small_model import CONFIG, small_model_opts

FRAMES, CLIPS = "tiny_frames", "tiny_clips"


@pytest.fixture(autouse=True)
def datasets(tmp_path):
    for clip in range(2):
        write_clip(tmp_path / "data", f"aachen_{clip:06d}", num_frames=3)
    register_labelled_frames(FRAMES, str(tmp_path / "data"), "val")
    register_cityscapes_video(CLIPS, str(tmp_path / "data"), "val")
    yield
    for name in (FRAMES, CLIPS):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture(autouse=True)
def loggers():
    """setup() gives the loggers handlers; other tests read the root logger's."""
    names = ("detectron2", "fvcore", "blockcopy_d2", "iopath")
    before = {name: (list(logging.getLogger(name).handlers)) for name in names}
    yield
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = before[name], True


@pytest.fixture
def run(tmp_path):
    def main(*flags_and_opts, flags=()):
        arguments = [
            "--config-file", CONFIG, *flags,
            *small_model_opts(tmp_path),
            "DATASETS.TRAIN", f"('{FRAMES}',)",
            "DATASETS.TEST", f"('{FRAMES}',)",
            "DATALOADER.NUM_WORKERS", "0",
            "INPUT.CLIP.NUM_FRAMES", "3",
            "OUTPUT_DIR", str(tmp_path / "output"),
            *flags_and_opts,
        ]  # fmt: skip
        return train_net.main(default_argument_parser().parse_args(arguments))

    return main


ON = ["MODEL.BLOCKCOPY.ENABLED", "True", "DATASETS.TRAIN", f"('{CLIPS}',)"]
ON += ["DATASETS.TEST", f"('{CLIPS}',)"]


def test_training_a_detector_and_evaluating_it(run, tmp_path):
    run(
        *["MODEL.WEIGHTS", "", "SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2"],
        *["INPUT.MIN_SIZE_TRAIN", "(64,)", "SOLVER.WARMUP_ITERS", "1"],
    )
    weights = tmp_path / "output" / "model_final.pth"
    state = torch.load(weights, weights_only=True)
    assert state["iteration"] == 1
    first = torch.load(tmp_path / "model.pth", weights_only=True)["model"]
    key = "backbone.bottom_up.stem.conv1.weight"
    assert state["model"][key].shape == first[key].shape
    assert torch.isfinite(state["model"][key]).all()
    assert (tmp_path / "output" / "config.yaml").exists()

    summary = tmp_path / "output" / "blockcopy_summary.json"
    summary.write_text("of another config")
    results = run("MODEL.WEIGHTS", str(weights), flags=["--eval-only"])
    assert set(results["segm"]) == {"AP", "AP50"}
    assert not summary.exists(), "with BlockCopy off, too"


def test_warming_then_evaluating_with_the_policy(run, tmp_path):
    run(*ON)
    policy = tmp_path / "output" / "policy_final.pth"
    assert policy.exists()
    results = run(*ON, "MODEL.BLOCKCOPY.POLICY.WEIGHTS", str(policy), flags=["--eval-only"])
    assert "segm" in results
    summary = json.loads((tmp_path / "output" / "blockcopy_summary.json").read_text())
    assert summary["frames"] == 6
    assert "Summary of the run" in (tmp_path / "output" / "log.txt").read_text()


def test_resuming_an_evaluation_takes_the_policy_it_left(run, tmp_path):
    run(*ON, flags=["--eval-only"])
    run(*ON, flags=["--eval-only", "--resume"])
    saved = torch.load(tmp_path / "output" / "policy_final.pth", weights_only=True)
    assert saved["learner"]["frames"] == 8


def test_expected_results_are_verified(run):
    with pytest.raises(SystemExit):
        run(*ON, "TEST.EXPECTED_RESULTS", "[['segm', 'AP', 200.0, 1.0]]", flags=["--eval-only"])


def test_weights_that_do_not_fit_stop_an_evaluation(run):
    with pytest.raises(ValueError, match="do not fit"):
        run("MODEL.ROI_HEADS.NUM_CLASSES", "5", flags=["--eval-only"])
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
        run(*ON, "MODEL.WEIGHTS", "", flags=["--eval-only"])


def test_without_a_data_set_nothing_is_trained(run):
    with pytest.raises(ValueError, match="DATASETS.TRAIN is empty.*--config-file"):
        run("DATASETS.TRAIN", "()")


def test_the_config_of_a_job_outlives_a_full_disk(tmp_path, monkeypatch):
    """A resumed job reads its config from the same file that Detectron2 then writes."""
    file = tmp_path / "output" / "config.yaml"
    file.parent.mkdir()
    file.write_text("# mine\nVERSION: 2\n")

    def full(cfg, args):
        file.write_text("VER")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(defaults, "default_setup", full)
    args = ["--config-file", str(file), "OUTPUT_DIR", str(file.parent)]
    with pytest.raises(OSError, match="No space left"):
        defaults.setup(default_argument_parser().parse_args(args))
    assert file.read_text() == "# mine\nVERSION: 2\n"


def test_logs_show_no_secrets_of_addresses(run, tmp_path, capfd, monkeypatch):
    # Handlers of earlier tests have streams that are closed by now: Python shows their messages.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    address = "http://u:s3cret@127.0.0.1:1/model.pth?token=s3cret"
    with pytest.raises(OSError, match="cannot be fetched"):
        run("MODEL.WEIGHTS", address, flags=["--eval-only"])
    shown = "".join(capfd.readouterr()) + (tmp_path / "output/log.txt").read_text()
    assert shown.count("http://***@127.0.0.1:1/model.pth") >= 4  # config, command line, download
    assert "s3cret" not in shown


def test_an_unknown_config_name_is_answered_with_near_ones(run):
    arguments = default_argument_parser().parse_args(["--config-file", "maskrcnn_blokcopy.yaml"])
    with pytest.raises(FileNotFoundError, match="maskrcnn_blockcopy.yaml"):
        train_net.main(arguments)


def test_single_images_are_no_clips(run):
    with pytest.raises(ValueError, match="no video_id"):
        run("MODEL.BLOCKCOPY.ENABLED", "True", flags=["--eval-only"])


def test_training_resumes_from_the_newest_readable_checkpoint(run, tmp_path, caplog):
    train = [
        *["MODEL.WEIGHTS", "", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.CHECKPOINT_PERIOD", "1"],
        *["INPUT.MIN_SIZE_TRAIN", "(64,)", "SOLVER.WARMUP_ITERS", "1"],
    ]
    run(*train, "SOLVER.MAX_ITER", "2")
    output = tmp_path / "output"
    for name in ("model_final.pth", "model_0000001.pth"):
        (output / name).write_bytes((output / name).read_bytes()[:1000])
    run(*train, "SOLVER.MAX_ITER", "3", flags=["--resume"])
    log = (output / "log.txt").read_text()
    assert "Resuming from" in log and "Starting training from iteration 1" in log
    assert torch.load(output / "model_final.pth", weights_only=True)["iteration"] == 2
