"""Two processes of a job, through gloo, against one."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from blockcopy_d2.engine import evaluate_clips, load_config
from blockcopy_d2.policy import OnlineLearner
from blockcopy_d2.resources import config_path
from tests.data.cityscapes_tree import write_clip
from tests.engine.two_processes import TICKS, LinearPolicy, has_frame, register, run_job, teach
from tests.small_model import CONFIG, small_model_opts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="the processes would need a GPU each"),
]
CLIPS, FRAMES = 3, 5
DATASET = "tiny_distributed_clips"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder, a data set in it, and from the name of a run to the options of its config."""
    folder = tmp_path_factory.mktemp("job")
    for clip in range(CLIPS):
        write_clip(folder / "clips", f"aachen_{clip:06d}", num_frames=FRAMES)
    # The last clip, which the second process runs, breaks.
    (broken,) = (folder / "clips" / "leftImg8bit_sequence").rglob(
        f"aachen_{CLIPS - 1:06d}_{2:06d}_*.png"
    )
    broken.write_bytes(b"broken")
    dataset = (DATASET, str(folder / "clips"))

    def config(name, *opts):
        return config_path(CONFIG), [
            *small_model_opts(folder),
            "MODEL.BLOCKCOPY.ENABLED", "True",
            "MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY", "2",
            "DATASETS.TRAIN", f"('{DATASET}',)",
            "DATASETS.TEST", f"('{DATASET}',)",
            "DATALOADER.NUM_WORKERS", "0",
            "INPUT.CLIP.NUM_FRAMES", str(FRAMES),
            "OUTPUT_DIR", str(folder / name),
            *opts,
        ]  # fmt: skip

    return folder, dataset, config


FIXED = ["MODEL.BLOCKCOPY.POLICY.NAME", "FrameDifference", "TEST.BLOCKCOPY.COMPARE", "['dense']"]
TOGETHER = ["MODEL.BLOCKCOPY.POLICY.SYNC", "True"]


@pytest.fixture(scope="module")
def job(data):
    """Folder of what a job of two processes left, and how to configure one process alike."""
    folder, dataset, config = data
    run_job(
        [
            ("learn_together", {"output_dir": str(folder)}),
            (
                "evaluate",
                {
                    "dataset": dataset,
                    "opts": config("two", *FIXED),
                    "result": str(folder / "results.json"),
                },
            ),
            (
                "evaluate",
                {"dataset": dataset, "opts": config("few", *FIXED, "INPUT.CLIP.NUM_CLIPS", "1")},
            ),
            (
                "warm",
                {
                    "dataset": dataset,
                    "opts": config("together", *TOGETHER),
                    "output_dir": str(folder),
                },
            ),
        ]
    )
    register(dataset)
    yield folder, lambda name: load_config(*config(name, *FIXED))
    DatasetCatalog.remove(DATASET)
    MetadataCatalog.remove(DATASET)


def summary_of(folder, name):
    return json.loads((folder / name / "blockcopy_summary.json").read_text())


def without_times(summary):
    if isinstance(summary, dict):
        return {k: without_times(v) for k, v in summary.items() if "seconds" not in k}
    return summary


def test_a_fixed_policy_gives_what_one_process_gives(job):
    folder, config = job
    expected = evaluate_clips(config("one"))
    results = json.loads((folder / "results.json").read_text())
    assert results["segm"] == pytest.approx(expected["segm"])
    one, two = (without_times(summary_of(folder, name)) for name in ("one", "two"))
    assert two["frames"] == 2 * FRAMES + 2 and two["clips"] == CLIPS
    assert len(two["failed_clips"]) == 1 and "aachen_000002_000002" in two["failed_clips"][0]
    assert two.keys() == one.keys()
    for key, value in one.items():
        assert two[key] == pytest.approx(value), key


def test_a_process_without_clips_holds_nobody_up(job):
    folder, _ = job
    summary = summary_of(folder, "few")
    assert summary["frames"] == FRAMES and summary["clips"] == 1


def test_processes_learn_as_one_batch_does(job):
    folder, _ = job
    first, second = (
        torch.load(folder / f"learned_{rank}.pth", weights_only=True) for rank in (0, 1)
    )
    torch.manual_seed(0)
    policy = LinearPolicy()
    before = {key: value.clone() for key, value in policy.state_dict().items()}
    learner = OnlineLearner(policy, target=0.3, update_every=2)
    for tick in range(TICKS):
        teach(learner, policy, [10 * rank + tick for rank in (0, 1) if has_frame(rank, tick)])
    for key, value in policy.state_dict().items():
        assert torch.equal(first["policy"][key], second["policy"][key]), key
        torch.testing.assert_close(first["policy"][key], value, rtol=1e-3, atol=1e-6)
        assert not torch.allclose(before[key], value, rtol=1e-3, atol=1e-6)
    for state in (first, second):
        assert state["learner"]["frames"] == TICKS
        torch.testing.assert_close(
            state["learner"]["moving_cost"], learner.state_dict()["moving_cost"]
        )


def test_a_policy_warmed_together_is_the_same_everywhere(job):
    folder, _ = job
    first, second = (
        torch.load(folder / f"warmed_{rank}.pth", weights_only=True) for rank in (0, 1)
    )
    # The second process has twice the clips of the first, and one of them breaks.
    assert first["frames"] == second["frames"] == 2 * FRAMES
    assert first["moving_cost"] == second["moving_cost"]
    for one, other in zip(first["weights"], second["weights"], strict=True):
        assert torch.equal(one, other) and torch.isfinite(one).all()
    saved = torch.load(folder / "together" / "policy_final.pth", weights_only=True)
    assert saved["learner"]["frames"] == 2 * FRAMES


def test_processes_wait_for_a_slow_one_and_keep_the_results_of_a_killed_ones_job(data):
    folder, dataset, config = data
    # Both waits are longer than the limit of a step.
    slow = {"dataset": dataset, "opts": config("slow", *FIXED), "seconds": 12}
    killed = {"dataset": dataset, "opts": config("killed", *FIXED)}
    killed["summary"] = str(folder / "killed" / "blockcopy_summary.json")
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_job(
            [("evaluate_with_a_slow_process", slow), ("evaluate_until_killed", killed)],
            step_limit=6,
        )
    summary = summary_of(folder, "slow")
    assert summary["frames"] == 2 * FRAMES + 2 and summary["dense"]["AP"] is not None
    assert "interrupted" not in summary and "not_scored" not in summary
    # The first process has run its one clip.
    summary = summary_of(folder, "killed")
    assert summary["frames"] == FRAMES and summary["blockcopy"]["seconds_per_frame"] > 0
    assert summary["interrupted"] == ["process 1 of 2 has not answered"]
    assert set(summary["not_scored"]) == {"blockcopy", "dense"}


def test_an_error_in_one_process_keeps_what_all_measured(data):
    folder, dataset, config = data
    with pytest.raises(ProcessRaisedException, match="of the model"):
        run_job(
            [("evaluate_until_an_error", {"dataset": dataset, "opts": config("error", *FIXED)})]
        )
    summary = summary_of(folder, "error")
    # Two of the second process; the first one may be told to stop before its end.
    assert 2 <= summary["frames"] <= FRAMES + 2
    assert any(
        f"RuntimeError: of the model after 2 of {2 * FRAMES} frames, process 1 of 2" in reason
        for reason in summary["interrupted"]
    )


def test_processes_that_learn_together_stop_together(data):
    folder, dataset, config = data
    stopped = {"dataset": dataset, "opts": config("stopped", *TOGETHER), "output_dir": str(folder)}
    with pytest.raises(ProcessExitedException):
        run_job([("warm_until_stopped", stopped)])
    # They ask each other every eight frames.
    (saved,) = (folder / "stopped").glob("policy_*.pth")
    assert saved.name == "policy_0000007.pth"
    assert torch.load(saved, weights_only=True)["learner"]["frames"] == 8
