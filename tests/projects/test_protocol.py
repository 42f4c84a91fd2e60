import argparse
import itertools
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from blockcopy_d2.data import register_cityscapes_video
from blockcopy_d2.engine import load_config
from blockcopy_d2.resources import config_path
from tests.data.cityscapes_tree import write_clip
from tests.small_model import CONFIG, small_model_opts

PROJECT = Path(__file__).resolve().parents[2] / "projects" / "BlockCopy"
NAMES = {"train": "protocol_train", "val": "protocol_val"}


@pytest.fixture(scope="module", autouse=True)
def project():
    """The project's modules, as its scripts import them."""
    sys.path.insert(0, str(PROJECT))
    yield
    sys.path.remove(str(PROJECT))


@pytest.fixture(autouse=True)
def clips(tmp_path):
    """Two clips of three frames per split."""
    for split, name in NAMES.items():
        for index in range(2):
            write_clip(tmp_path / "data", f"a_{index:06d}", split=split, num_frames=3)
        register_cityscapes_video(name, str(tmp_path / "data"), split)
    yield tmp_path / "data"
    for name in NAMES.values():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture
def run(weights, tmp_path):
    """Runs the script in this process; the output goes to tmp_path / "output"."""

    def run(*args, opts=()):
        import run_protocol

        common = [
            "DATASETS.TRAIN", f"('{NAMES['train']}',)",
            "DATASETS.TEST", f"('{NAMES['val']}',)",
            "DATALOADER.NUM_WORKERS", "0",
            "MODEL.BLOCKCOPY.BLOCK_SIZE", "32",
            "MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY", "2",
        ]  # fmt: skip
        opts = [*small_model_opts(weights), *common, *opts]
        argv = ["--config-file", CONFIG, "--output", tmp_path / "output", *args, "--opts", *opts]
        run_protocol.main([str(arg) for arg in argv])

    return run


@pytest.fixture
def read(tmp_path):
    """Reads results.json."""
    return lambda: json.loads((tmp_path / "output" / "results.json").read_text())


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
    # 13 of 32 blocks
    assert difference["executed_fraction"] == 13 / 32 and 0 < random["executed_fraction"] < 1
    assert difference["gmacs"] < dense["gmacs"] and 0 < difference["gain_share"] < 1
    # All blocks, whoever picks them, are the dense network.
    for row in (all_random, all_difference):
        for key in ("executed_fraction", "AP", "AP50", "gmacs", "gain_share"):
            assert row[key] == dense[key]

    output = tmp_path / "output"
    table = (output / "results.md").read_text().split("\n")
    assert table[0].split("|")[1].strip() == "method"
    assert [line.split("|")[1].strip() for line in table[2:4]] == ["dense", "BlockCopy"]
    for name in ("ap_gmacs.png", "ap_ms.png"):
        assert Image.open(output / name).size == (960, 630)
    # Each target has its own policy.
    policies = [torch.load(output / f"policy_{t}.pth", weights_only=True) for t in ("0.4", "1")]
    weights = [p["model"]["network.head.0.weight"] for p in policies]
    assert not torch.equal(*weights)


def test_resumed_run_takes_the_policies_that_were_warmed(run, monkeypatch):
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


def test_seeds_of_the_draws(run, read, tmp_path):
    run("--warm-clips", 1, "--clips", 2, "--targets", 0.4, "--seeds", 3)
    results = read()
    assert [row["method"] for row in results["rows"]] == [
        "dense",
        "blockcopy",
        "random",
        "frame_difference",
    ]
    assert results["seeds"] == 3
    dense, learned, random, difference = results["rows"]
    assert "seeds" not in dense and "seeds" not in difference
    for row in (learned, random):
        assert len(row["seeds"]) == 3 and "phases" not in row
        for key in ("executed_fraction", "AP", "gmacs", "ms_median", "gain_share"):
            values = [seed[key] for seed in row["seeds"]]
            assert row[key] == pytest.approx(sum(values) / 3)
        # They draw different blocks, the learned ones by policies of their own.
        assert len({seed["executed_fraction"] for seed in row["seeds"]}) > 1
    names = ("policy_0.4", "policy_0.4_seed_1", "policy_0.4_seed_2")
    policies = [torch.load(tmp_path / "output" / f"{n}.pth", weights_only=True) for n in names]
    weights = [policy["model"]["network.head.0.weight"] for policy in policies]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    table = (tmp_path / "output" / "results.md").read_text()
    assert "Mean and standard deviation of 3 seeds" in table
    rows = [line for line in table.splitlines() if " ± " in line]
    assert [line.split("|")[1].strip() for line in rows] == ["BlockCopy", "random blocks"]


def test_spread_is_the_standard_deviation(results_file):
    from blockcopy_protocol.report import markdown_table

    results = json.loads(results_file.read_text())
    results["rows"][1]["seeds"] = [{"AP": 44.0, "AP50": 69.0}, {"AP": 45.0, "AP50": 69.0}]
    assert "44.5 ± 0.7" in markdown_table(results) and "69.0 ± 0.0" in markdown_table(results)
    results["rows"][1]["seeds"].pop()
    assert "±" not in markdown_table(results)


class Interrupted:
    """Raises in the place of a method's run, after ``frames`` frames."""

    def __init__(self, run, frames):
        self.run = run
        self.frames = frames

    def __call__(self, method, model, inputs):
        if method.kind == "dense":
            if self.frames == 0:
                raise KeyboardInterrupt
            self.frames -= 1
        return self.run(method, model, inputs)


def test_baselines_without_a_target(run, read):
    names = ["every_second_frame", "every_third_frame", "half_resolution"]
    run("--warm-clips", 0, "--clips", 1, "--targets", 0.4, "--baselines", *names)
    dense, second, third, half, learned = read()["rows"]
    assert [row["method"] for row in (second, third, half)] == names
    assert learned["method"] == "blockcopy"
    # Two frames follow the first one, which all but half_resolution run whole.
    assert [row["executed_fraction"] for row in second["phases"]] == [0.5, 0.5]
    assert [row["executed_fraction"] for row in third["phases"]] == [0, 0.5, 0.5]
    assert second["executed_fraction"] == 0.5
    assert third["executed_fraction"] == pytest.approx(1 / 3)
    assert half["executed_fraction"] == 1 and half["gain_share"] is None
    # Frames that are skipped cost nothing, neither network nor heads.
    assert second["gmacs"] == pytest.approx(2 / 3 * dense["gmacs"], rel=0.02)
    costs = [row["gmacs"] / dense["gmacs"] for row in third["phases"]]
    assert costs == pytest.approx([1 / 3, 2 / 3, 2 / 3], rel=0.02)
    assert half["gmacs"] < dense["gmacs"]
    for row in (second, third):
        assert row["ms_median"] is None and row["ms_mean"] > 0
        for key in ("AP", "gmacs", "ms_mean", "gain_share"):
            values = [phase[key] for phase in row["phases"]]
            assert row[key] == pytest.approx(sum(values) / len(values))
    for row in (second, third, half):
        assert set(row["ms_per_stage"]) == {"network", "heads"}


def test_stages_of_a_frame(run, read, tmp_path):
    run("--warm-clips", 0, "--clips", 1, "--targets", 0.4, "--baselines", "stock")
    stock, learned = (read()["rows"][index] for index in (1, 2))
    dense = read()["rows"][0]
    assert stock["method"] == "stock" and stock["executed_fraction"] is None
    assert stock["gmacs"] is None and stock["gain_share"] is None
    # The same network: the same detections.
    assert stock["AP"] == dense["AP"] and set(stock["ms_per_stage"]) == {"stock"}
    for row in (dense, learned):
        assert sum(row["gmacs_per_stage"].values()) == pytest.approx(row["gmacs"])
    assert learned["gmacs_per_stage"]["policy"] > 0 == dense["gmacs_per_stage"]["policy"]
    text = (tmp_path / "output" / "results.md").read_text()
    table = [line.split("|") for line in text.split("\n\n")[1].splitlines()]
    cells = {row[1].strip(): [cell.strip() for cell in row[2:-1]] for row in table}
    titles = cells["method"]
    assert titles[0] == "ms" and titles[-2:] == ["GMACs, task", "GMACs, policy"]
    found = dict(zip(titles, cells["BlockCopy, tau 0.4"]))
    assert float(found["policy network"]) == pytest.approx(
        learned["ms_per_stage"]["policy"], abs=0.051
    )
    parts = [
        float(value) for title, value in found.items() if title in titles[1:8] and value != "-"
    ]
    assert sum(parts) == pytest.approx(float(found["ms"]), abs=0.5)
    only = dict(zip(titles, cells["stock Detectron2"]))
    assert only["task network"] == only["ms"] and only["GMACs, task"] == "-"
    assert Image.open(tmp_path / "output" / "stages.png").width == 960


def test_every_phase_of_a_lower_frame_rate_scores_another_frame(run, read, monkeypatch):
    """The last of three frames has labels; what each method gives for it is a frame's number."""
    from blockcopy_protocol.methods import Method

    told, run_method = {}, Method.run

    def spy(method, model, inputs):
        result = run_method(method, model, inputs)
        told.setdefault(method.name, []).append((inputs["frame_index"], id(result.output)))
        return result

    monkeypatch.setattr(Method, "run", spy)
    rates = ["every_second_frame", "every_third_frame", "every_fourth_frame"]
    run("--warm-clips", 0, "--clips", 1, "--targets", 0.4, "--baselines", *rates)
    executed = {}
    for name, outputs in told.items():
        first = {}
        executed[name] = [first.setdefault(output, index) for index, output in outputs]
    assert executed == {
        "dense": [0, 1, 2],
        "blockcopy 0.4": [0, 1, 2],
        "every_second_frame from 0": [0, 0, 2],
        "every_second_frame from 1": [0, 1, 1],
        "every_third_frame from 0": [0, 0, 0],
        "every_third_frame from 1": [0, 1, 1],
        "every_third_frame from 2": [0, 0, 2],
        "every_fourth_frame from 0": [0, 0, 0],
        "every_fourth_frame from 1": [0, 1, 1],
        "every_fourth_frame from 2": [0, 0, 2],
        "every_fourth_frame from 3": [0, 0, 0],
    }


def test_moved_baselines(run, read):
    names = ["every_third_frame_moved", "moved_difference", "moved_difference_without_age"]
    run("--warm-clips", 0, "--clips", 1, "--targets", 0.4, "--baselines", *names)
    dense, third, learned, difference, ageless = read()["rows"]
    rows = (third, difference, ageless)
    assert [row["method"] for row in rows] == names
    assert all("motion" in row["ms_per_stage"] for row in rows)
    # The config names no estimator: what is copied stays in place elsewhere.
    assert "motion" not in dense["ms_per_stage"] and "motion" not in learned["ms_per_stage"]
    assert [row["executed_fraction"] for row in third["phases"]] == [0, 0.5, 0.5]
    assert difference["executed_fraction"] == ageless["executed_fraction"] > 0.2
    assert third["gmacs"] < difference["gmacs"] < dense["gmacs"]


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
    args = argparse.Namespace(config_file=CONFIG, opts=opts, warm_clips=0, warm_passes=1, seeds=1)
    written = json.dumps(describe_run(cfg, args))
    assert written.count("http://***@h/policy.pth?***") == 5 and "s3cret" not in written


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
        (["--clips", 0], "0 is not at least 1"),
        (["--seeds", 0], "0 is not at least 1"),
        (["--warm-clips", -1], "--warm-clips"),
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
        ([], ["MODEL.BLOCKCOPY.POLICY.NAME", "NoBlocks"], "NoBlocks, which does not learn"),
        (["--resume"], [], "policy_0.3.pth do not exist"),
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


@pytest.fixture
def results_file(tmp_path):
    rows = [
        {"method": "dense", "target": None, "AP": 45.0, "AP50": 70.0, "gmacs": 77.0},
        {"method": "blockcopy", "target": 0.3, "AP": 44.5, "AP50": 69.0, "gmacs": 38.0},
        {"method": "random", "target": 0.3, "AP": None, "AP50": None, "gmacs": 30.0},
    ]
    results = {
        "config_file": "c.yaml",
        "dataset": "some_val",
        "train_dataset": "some_train",
        "warm_clips": 7,
        "warm_passes": 2,
        "metrics": ["AP", "AP50"],
        "clips": 3,
        "frames": 60,
        "complete": True,
        "date": "2030-01-02T03:04:05+00:00",
        "machine": {"processor": "P", "threads": 2, "device": "Some GPU"},
        "versions": {"torch": "9.9"},
        "rows": [{**row, "ms_median": 100.0, "ms_mean": 101.0} for row in rows],
    }
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    return path


def test_readme_shows_the_latest_run(results_file, tmp_path):
    import update_readme

    readme = tmp_path / "README.md"
    shutil.copy(PROJECT / "README.md", readme)
    original = readme.read_text()
    update_readme.main([str(results_file), "--readme", str(readme)])
    text = readme.read_text()
    begin, end = (f"<!-- results: {word} -->" for word in ("begin", "end"))
    assert text.split(begin)[0] == original.split(begin)[0]
    assert text.split(end)[1] == original.split(end)[1]
    block = text.split(begin)[1].split(end)[0]
    for part in (
        "some_val",
        "3 clips",
        "7 clips of some_train, 2 times",
        "Some GPU",
        "2030-01-02",
        "44.5",
    ):
        assert part in block
    for name in ("ap_gmacs.png", "ap_ms.png"):
        assert f"(figures/{name})" in block and (tmp_path / "figures" / name).is_file()
    update_readme.main([str(results_file), "--readme", str(readme)])
    assert readme.read_text() == text


def test_readme_may_show_several_runs(results_file, tmp_path):
    import update_readme

    readme = tmp_path / "README.md"
    markers = [
        f"<!-- {name}: {word} -->"
        for name in ("results", "other results")
        for word in ("begin", "end")
    ]
    readme.write_text("\n".join(markers))
    update_readme.main([str(results_file), "--readme", str(readme), "--section", "other"])
    text = readme.read_text()
    assert text.startswith("\n".join(markers[:3])) and "44.5" in text
    assert (tmp_path / "figures" / "other_ap_ms.png").is_file()


def test_readme_without_markers_stays(results_file, tmp_path):
    import update_readme

    readme = tmp_path / "README.md"
    readme.write_text("# Mine\n")
    with pytest.raises(SystemExit, match="needs the lines <!-- results: begin -->"):
        update_readme.main([str(results_file), "--readme", str(readme)])
    assert readme.read_text() == "# Mine\n"


@pytest.mark.parametrize(
    "content, message", [("{", "is not JSON"), ("[]", 'has no "rows"'), (None, "No such file")]
)
def test_unusable_results_are_named(content, message, tmp_path):
    import update_readme

    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit, match=message):
        update_readme.main([str(path)])
