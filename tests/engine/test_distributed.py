"""Two processes of a job, through gloo, against one."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

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
def job(tmp_path_factory):
    """Folder of what a job of two processes left, and how to configure one process alike."""
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

    fixed = ["MODEL.BLOCKCOPY.POLICY.NAME", "FrameDifference"]
    fixed += ["TEST.BLOCKCOPY.COMPARE", "['dense']"]
    together = ["MODEL.BLOCKCOPY.POLICY.SYNC", "True"]
    run_job(
        [
            ("learn_together", {"output_dir": str(folder)}),
            (
                "evaluate",
                {
                    "dataset": dataset,
                    "opts": config("two", *fixed),
                    "result": str(folder / "results.json"),
                },
            ),
            (
                "evaluate",
                {"dataset": dataset, "opts": config("few", *fixed, "INPUT.CLIP.NUM_CLIPS", "1")},
            ),
            (
                "warm",
                {
                    "dataset": dataset,
                    "opts": config("together", *together),
                    "output_dir": str(folder),
                },
            ),
        ]
    )
    register(dataset)
    yield folder, lambda name: load_config(*config(name, *fixed))
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
