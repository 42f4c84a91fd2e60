import argparse
import itertools
import json
import shutil

import pytest
import torch
from PIL import Image

from blockcopy_d2.engine import load_config
from blockcopy_d2.resources import config_path
from tests.projects.names import NAMES, PROJECT
from tests.small_model import CONFIG, small_model_opts

pytestmark = pytest.mark.usefixtures("project", "clips")


def test_a_whole_run(run, read, tmp_path):
    run("--warm-clips", 1, "--clips", 2, "--targets", 1, 0.4)
    results = read()
    assert results["complete"] and results["clips"] == 2 and results["frames"] == 6
    assert results["dataset"] == NAMES["val"] and results["machine"]["device"] == "cpu"
    assert results["versions"]["torch"] == torch.__version__
    assert [(row["method"], row["target"]) for row in results["rows"]] == [
        ("dense", None),
        ("blockcopy", 0.4),
        ("random", 0.4),
        ("frame_difference", 0.4),
        ("blockcopy", 1),
        ("random", 1),
        ("frame_difference", 1),
    ]
    for row in results["rows"]:
        assert row["ms_median"] > 0 and 0 <= row["AP"] <= row["AP50"]
        assert row["ms_mean"] == pytest.approx(sum(row["ms_per_stage"].values()))
    dense, learned, random, difference, _, all_random, all_difference = results["rows"]
    assert dense["executed_fraction"] == 1 and dense["gain_share"] == 1
    assert set(dense["ms_per_stage"]) == {"network", "heads"}
    assert "policy_update" in learned["ms_per_stage"]
    # Two clips of three frames, the first of which are not chosen.
    for row in results["rows"]:
        (point,) = row["course"]
        assert point["frames"] == 4
        assert point["executed"] == pytest.approx(row["executed_fraction"])
        assert point["gain_share"] == pytest.approx(row["gain_share"])
    # 13 of 32 blocks
    assert difference["executed_fraction"] == 13 / 32 and 0 < random["executed_fraction"] < 1
    assert difference["gmacs"] < dense["gmacs"] and 0 < difference["gain_share"] < 1
    # With all blocks, any policy is the dense network.
    for row in (all_random, all_difference):
        for key in ("executed_fraction", "AP", "AP50", "gmacs", "gain_share"):
            assert row[key] == dense[key]

    output = tmp_path / "output"
    table = (output / "results.md").read_text().split("\n")
    assert table[0].split("|")[1].strip() == "method"
    assert [line.split("|")[1].strip() for line in table[2:4]] == ["dense", "BlockCopy"]
    for name in ("ap_gmacs.png", "ap_ms.png"):
        assert Image.open(output / name).size == (960, 630)
    assert Image.open(output / "course.png").size == (960, 810)
    # Each target has its own policy.
    policies = [torch.load(output / f"policy_{t}.pth", weights_only=True) for t in ("0.4", "1")]
    weights = [p["model"]["network.head.0.weight"] for p in policies]
    assert not torch.equal(*weights)


def test_resumed_run_takes_the_policies_that_were_warmed(run, tmp_path, monkeypatch):
    import run_protocol

    methods = []
    monkeypatch.setattr(run_protocol, "run_methods", lambda *args: methods.extend(args[2]))
    run("--warm-clips", 1, "--targets", 0.4, 0.6)
    warmed = {method.name: method for method in methods}
    methods.clear()
    run("--resume", "--warm-clips", 1, "--targets", 0.4, 0.6)
    for method in methods:
        expected = warmed[method.name].policy.state_dict()
        found = method.policy.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)
        if method.learner is not None:
            assert method.learner.state_dict()["frames"] == 2
    # Offline, as in Table 2: policies learn on the training clips alone. The other run's results
    # stay.
    methods.clear()
    offline = ["MODEL.BLOCKCOPY.LEARNER.ENABLED", "False"]
    folders = ["--resume", tmp_path / "output", "--output", tmp_path / "offline"]
    run(*folders, "--warm-clips", 0, "--targets", 0.4, 0.6, opts=offline)
    assert (tmp_path / "offline").is_dir()
    assert not any(method.learner for method in methods)
    for name in ("blockcopy 0.4", "blockcopy 0.6"):
        (found,) = (method.policy.state_dict() for method in methods if method.name == name)
        expected = warmed[name].policy.state_dict()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_all_baselines(run, monkeypatch):
    import run_protocol
    from blockcopy_protocol.methods import BASELINES

    methods = []
    monkeypatch.setattr(run_protocol, "run_methods", lambda *args: methods.extend(args[2]))
    run("--warm-clips", 0, "--targets", 0.4, "--baselines", "all")
    assert {method.kind for method in methods} == {"dense", "blockcopy", *BASELINES}


class Interrupted:
    """Raises instead of running a method, after ``frames`` frames."""

    def __init__(self, run, frames):
        self.run = run
        self.frames = frames

    def __call__(self, method, model, inputs):
        if method.kind == "dense":
            if self.frames == 0:
                raise KeyboardInterrupt
            self.frames -= 1
        return self.run(method, model, inputs)


SMALL = ("--warm-clips", 0, "--clips", 2, "--targets", 0.4, "--baselines")


def test_interrupted_run_is_scored(run, read, tmp_path, monkeypatch):
    from blockcopy_protocol.methods import Method

    interrupted = Interrupted(Method.run, frames=4)
    monkeypatch.setattr(Method, "run", lambda *args: interrupted(*args))
    with pytest.raises(SystemExit, match="output has what was run"):
        run(*SMALL)
    results = read()
    assert not results["complete"] and results["clips"] == 1 and results["frames"] == 4
    assert [row["method"] for row in results["rows"]] == ["dense", "blockcopy"]
    assert all(row["AP"] is not None for row in results["rows"])
    assert "ended early" in (tmp_path / "output" / "results.md").read_text()


def test_policies_outlive_an_interrupt_while_they_are_warmed(run, tmp_path, monkeypatch):
    from blockcopy_protocol.methods import Method

    frames = itertools.count()

    def interrupted(method, model, inputs):
        if next(frames) == 5:
            raise KeyboardInterrupt
        return original(method, model, inputs)

    original = Method.run
    monkeypatch.setattr(Method, "run", interrupted)
    with pytest.raises(SystemExit, match="output has what was run"):
        run("--warm-clips", 2, "--targets", 0.4, "--baselines")
    saved = torch.load(tmp_path / "output" / "policy_0.4_unfinished.pth", weights_only=True)
    assert saved["learner"]["frames"] > 0
    assert not (tmp_path / "output" / "policy_0.4.pth").exists()


def test_results_show_no_secrets_of_addresses(tmp_path):
    from blockcopy_protocol.results import describe_run

    address = "http://u:s3cret@h/policy.pth?token=s3cret"
    opts = ["MODEL.BLOCKCOPY.POLICY.WEIGHTS", address, "MODEL.WEIGHTS", address]
    cfg = load_config(config_path(CONFIG), [*small_model_opts(tmp_path), *opts])
    args = argparse.Namespace(config_file=CONFIG, opts=opts, warm_clips=0, warm_passes=1)
    args.seeds, args.include_loading, args.policies = 1, False, [("LearnedPolicy", address)]
    args.untimed = False
    written = json.dumps(describe_run(cfg, args))
    assert written.count("http://***@h/policy.pth?***") == 6 and "s3cret" not in written


def test_run_that_is_not_scored_leaves_the_cost_of_its_clips(run, read, tmp_path, monkeypatch):
    import update_readme
    from blockcopy_protocol.loop import PartialScoringHook

    def fail(self):
        raise RuntimeError("killed")

    monkeypatch.setattr(PartialScoringHook, "after_train", fail)
    with pytest.raises(RuntimeError, match="killed"):
        run(*SMALL)
    results = read()
    assert not results["complete"] and results["clips"] == 2
    assert results["metrics"] == []
    assert all("AP" not in row and row["gmacs"] > 0 for row in results["rows"])
    readme = tmp_path / "README.md"
    shutil.copy(PROJECT / "README.md", readme)
    with pytest.raises(SystemExit, match="No method has a score"):
        update_readme.main([str(tmp_path / "output" / "results.json"), "--readme", str(readme)])
    assert readme.read_text() == (PROJECT / "README.md").read_text()


def test_broken_frame_ends_its_clip_only(run, read, clips):
    folder = clips / "leftImg8bit_sequence" / "val" / "a"
    (folder / "a_000000_000001_leftImg8bit.png").unlink()
    run(*SMALL)
    results = read()
    assert results["complete"] and results["clips"] == 1 and results["frames"] == 4
    (failure,) = results["failed_clips"]
    assert "Frame 1 of clip a_000000_000002" in failure and "no such file" in failure
    assert all(row["AP"] is not None for row in results["rows"])


@pytest.mark.parametrize(
    "args, message",
    [
        (["--targets", 0.3, 1.5], "1.5 is not within"),
        (["--targets"], "expected at least one"),
        (["--baselines", "oracle"], "invalid choice: 'oracle'"),
        (["--clips", 0], "0 is not a whole number of at least 1"),
        (["--seeds", 0], "0 is not a whole number of at least 1"),
        (["--policies", "ExpectedGian=x.pth"], "Did you mean ExpectedGain"),
        (["--warm-clips", -1], "--warm-clips"),
        (["--targets", "nan"], "nan is not within"),
        (["--policies", "LearnedPolicy", "LearnedPolicy=x.pth"], "LearnedPolicy twice"),
    ],
)
def test_bad_arguments_are_refused(run, args, message, capsys):
    with pytest.raises(SystemExit):
        run(*args)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "args, opts, message",
    [
        ([], ["DATASETS.TEST", "()"], "DATASETS.TEST is ()"),
        ([], ["DATASETS.TEST", "('no_such_data',)"], "'no_such_data' is not registered"),
        ([], ["MODEL.BLOCKCOPY.TARGTE", 0.3], "MODEL.BLOCKCOPY.TARGET"),
        ([], ["MODEL.WEIGHTS", "missing.pth"], "missing.pth do not exist"),
        ([], ["MODEL.MASK_ON", False], "MODEL.MASK_ON is off"),
        ([], ["MODEL.BLOCKCOPY.LEARNER.ENABLED", False], "use --warm-clips 0"),
        ([], ["MODEL.BLOCKCOPY.POLICY.NAME", "NoBlocks"], "policy NoBlocks does not learn"),
        ([], ["MODEL.BLOCKCOPY.ENABLED", False], "MODEL.BLOCKCOPY.ENABLED is off in --opts"),
        ([], ["MODEL.DEVICE", "gpu"], "MODEL.DEVICE is 'gpu'; expected a device of PyTorch"),
        (["--targets", 0.3, 0.30000001], [], "Two --targets are 0.3 to six digits"),
        (["--resume"], [], "--resume needs policy_0.3.pth"),
    ],
)
def test_bad_configs_are_named(run, args, opts, message):
    with pytest.raises(SystemExit) as error:
        run(*args, opts=opts)
    assert str(error.value).startswith("error: ") and message in str(error.value)


def test_data_set_without_clips_is_named(run, clips):
    shutil.rmtree(clips / "gtFine" / "val" / "a")
    with pytest.raises(SystemExit, match="instanceIds.png are missing"):
        run()
