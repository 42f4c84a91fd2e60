"""The methods that the protocol compares, and the rows that they become."""

import time

import pytest
import torch
from PIL import Image


def test_seeds_of_the_draws(run, read, tmp_path):
    shared = ("--warm-course", "--untimed")
    run("--warm-clips", 1, "--clips", 2, "--targets", 0.4, "--seeds", 2, *shared)
    results = read()
    assert [row["method"] for row in results["rows"]] == [
        "dense",
        "blockcopy",
        "random",
        "frame_difference",
    ]
    assert results["seeds"] == 2
    dense, learned, random, difference = results["rows"]
    assert not {"seeds", "targets"} & dense.keys() and "seeds" not in difference
    # A method that draws nothing runs at neighbouring targets.
    assert [own["target"] for own in difference["targets"]] == [0.392, 0.408]
    shares = [own["executed_fraction"] for own in difference["targets"]]
    assert difference["executed_fraction"] == pytest.approx(sum(shares) / 2)
    assert difference["target"] == 0.4 and "targets" not in random
    for row in (learned, random):
        assert len(row["seeds"]) == 2 and "phases" not in row
        for key in ("executed_fraction", "AP", "gmacs", "ms_median", "gain_share"):
            values = [seed[key] for seed in row["seeds"]]
            assert row[key] == pytest.approx(sum(values) / 2)
        # They choose different blocks, and learned ones have policies of their own.
        assert len({seed["executed_fraction"] for seed in row["seeds"]}) > 1
    names = ("policy_0.4", "policy_0.4_seed_1")
    policies = [torch.load(tmp_path / "output" / f"{n}.pth", weights_only=True) for n in names]
    weights = [policy["model"]["network.head.0.weight"] for policy in policies]
    assert not torch.equal(*weights)
    table = (tmp_path / "output" / "results.md").read_text()
    runs = "of 2 seeds, and of 2 targets within 2 % of tau where nothing is drawn."
    assert f"Mean and standard deviation {runs}" in table
    rows = [line for line in table.splitlines() if " ± " in line]
    assert [line.split("|")[1].strip() for line in rows] == [
        "BlockCopy",
        "random blocks",
        "frame difference",
    ]
    assert [row["draws"] for row in results["rows"]] == [False, True, True, False]
    # One clip of three frames warmed both policies; the process shares the machine.
    (point,) = learned["warm_course"]
    assert point["frames"] == 2 and 0 < point["executed"] < 1 and 0 < point["gain_share"] < 1
    assert not any("warm_course" in row for row in (dense, random, difference))
    assert not results["timed"] and "ms" not in table.split("Mean")[0]
    assert {path.name for path in (tmp_path / "output").glob("*.png")} == {
        "ap_gmacs.png",
        "course.png",
    }


def test_further_policies(run, read, tmp_path, monkeypatch):
    import run_protocol

    options = ["--warm-clips", 1, "--clips", 2, "--targets", 0.4, "--seeds", 2, "--baselines"]
    run(*options, "--policies", "ExpectedGain")
    _, paper, gain = read()["rows"]
    assert [row["method"] for row in (paper, gain)] == ["blockcopy", "ExpectedGain"]
    # One of them draws its blocks, the other has targets.
    assert len(paper["seeds"]) == 2 and "seeds" not in gain
    assert [own["target"] for own in gain["targets"]] == [0.392, 0.408]
    assert gain["executed_fraction"] == pytest.approx(0.4, abs=1 / 32)
    assert "policy_update" in gain["ms_per_stage"]
    assert read()["other_policies"] == {"ExpectedGain": ""} and read()["policy"] == "LearnedPolicy"
    assert "| ExpectedGain " in (tmp_path / "output" / "results.md").read_text()
    path = tmp_path / "output" / "policy_ExpectedGain_0.4_at_0.392.pth"
    learned = torch.load(path, weights_only=True)["model"]["network.correction"]
    assert learned.any()

    # Learned weights can be resumed, and another run may begin with them.
    methods = []
    monkeypatch.setattr(run_protocol, "run_methods", lambda *args: methods.extend(args[2]))
    run(*options, "--resume", "--policies", "ExpectedGain")
    path = path.rename(tmp_path / "gain.pth")
    run("--warm-clips", 0, "--targets", 0.2, "--baselines", "--policies", f"ExpectedGain={path}")
    found = [method for method in methods if method.kind == "ExpectedGain"]
    names = ["ExpectedGain 0.4 at 0.392", "ExpectedGain 0.4 at 0.408", "ExpectedGain 0.2"]
    assert [method.name for method in found] == names
    for method in found[::2]:
        assert torch.equal(method.policy.network.correction, learned)


def test_targets_of_what_draws_nothing(project):
    from blockcopy_protocol.methods import spread_targets

    assert spread_targets(1 / 3, 1) == [1 / 3]
    assert spread_targets(0.3, 3) == [0.294, 0.3, 0.306]
    assert spread_targets(0.5, 4) == pytest.approx([0.49, 0.49667, 0.50333, 0.51], abs=1e-5)
    # No target lies above 1.
    assert spread_targets(0.99, 3) == [0.98, 0.99, 1.0] and spread_targets(1, 2) == [1, 1]


def test_baselines_without_a_target(run, read):
    names = ["every_second_frame", "every_third_frame", "half_resolution"]
    run("--warm-clips", 0, "--clips", 1, "--targets", 0.4, "--baselines", *names)
    dense, second, third, half, learned = read()["rows"]
    assert [row["method"] for row in (second, third, half)] == names
    assert learned["method"] == "blockcopy"
    # Two frames follow the first one, which runs whole except in half_resolution.
    assert [row["executed_fraction"] for row in second["phases"]] == [0.5, 0.5]
    assert [row["executed_fraction"] for row in third["phases"]] == [0, 0.5, 0.5]
    assert second["executed_fraction"] == 0.5
    assert third["executed_fraction"] == pytest.approx(1 / 3)
    assert half["executed_fraction"] == 1 and half["gain_share"] is None
    # Skipped frames cost nothing: they run neither network nor heads.
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
    assert titles[:2] == ["executed", "ms"]
    assert cells["BlockCopy, tau 0.4"][0] == f"{learned['executed_fraction']:.3f}"
    assert titles[-3:] == ["block lists", "GMACs, task", "GMACs, policy"]
    # Listing blocks is a part of running them.
    assert 0 < learned["ms_block_lists"] < learned["ms_per_stage"]["network"]
    assert stock["ms_block_lists"] is None
    assert "All blocks (dense) against stock Detectron2: " in text
    found = dict(zip(titles, cells["BlockCopy, tau 0.4"]))
    assert float(found["policy network"]) == pytest.approx(
        learned["ms_per_stage"]["policy"], abs=0.051
    )
    parts = [
        float(value) for title, value in found.items() if title in titles[2:11] and value != "-"
    ]
    assert sum(parts) == pytest.approx(float(found["ms"]), abs=0.5)
    only = dict(zip(titles, cells["stock Detectron2"]))
    assert only["task network"] == only["ms"] and only["GMACs, task"] == "-"
    assert Image.open(tmp_path / "output" / "stages.png").width == 960


@pytest.mark.slow
def test_loading_may_count(run, read, monkeypatch):
    from blockcopy_protocol.loop import ProtocolLoop

    next_frame = ProtocolLoop._next_frame

    def slowly(loop):
        time.sleep(0.05)
        return next_frame(loop)

    monkeypatch.setattr(ProtocolLoop, "_next_frame", slowly)
    for option in ((), ("--include-loading",)):
        run("--warm-clips", 0, "--clips", 2, "--targets", 0.4, "--baselines", *option)
        results = read()
        assert results["include_loading"] == bool(option)
        for row in results["rows"]:
            # Five of six frames: the first one starts the loader.
            loading = row["ms_per_stage"].pop("loading", 0)
            assert (loading > 50 * 5 / 6) == bool(option)
            assert row["ms_mean"] == pytest.approx(sum(row["ms_per_stage"].values()) + loading)


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
    assert all({"motion", "move_caches"} <= row["ms_per_stage"].keys() for row in rows)
    # The config names no estimator: copied features stay in place elsewhere.
    assert "motion" not in dense["ms_per_stage"] and "motion" not in learned["ms_per_stage"]
    assert [row["executed_fraction"] for row in third["phases"]] == [0, 0.5, 0.5]
    assert difference["executed_fraction"] == ageless["executed_fraction"] > 0.2
    assert third["gmacs"] < difference["gmacs"] < dense["gmacs"]


def test_the_gain_is_what_motion_does_not_explain(run, monkeypatch):
    """Also that of dense outputs, by which blocks are scored. Its motion costs dense no time."""
    import run_protocol

    chosen = []
    monkeypatch.setattr(run_protocol, "run_methods", lambda *args: chosen.append(args[1:3]))
    image = torch.rand(3, 128, 256, generator=torch.Generator().manual_seed(0)) * 255
    moved = {}
    for name in ("none", "BlockMatching"):
        run("--warm-clips", 0, "--targets", 0.4, opts=["MODEL.BLOCKCOPY.MOTION.NAME", name])
        model, (dense, *_) = chosen.pop()
        for index, shift in enumerate((0, 8)):
            inputs = {"image": image.roll(shift, 2), "height": 128, "width": 256}
            shown = dense.run(model, {**inputs, "video_id": "a", "frame_index": index})
        moved[name] = shown.result.field
        assert shown.result.executed == 1 and shown.seconds().keys() == {"network", "heads"}
    assert moved["none"] is None
    assert (moved["BlockMatching"][:, 0] == -8).float().mean() > 0.5


@pytest.mark.slow
def test_frames_as_graphs_have_the_same_rows(run, read, monkeypatch):
    """Every method has graphs of its own on the network that all share, as on a GPU."""
    from blockcopy_d2.modeling.running import graph

    kinds = ["stock", "every_second_frame_moved", "half_resolution", "moved_difference", "random"]
    found = []
    for captured in (False, True):
        monkeypatch.setattr(graph, "_has_graphs", lambda model, captured=captured: captured)
        options = ["--warm-clips", 1, "--warm-course", "--targets", 0.4]
        run(*options, "--baselines", *kinds, opts=["SEED", 1])
        found.append(read()["rows"])
    assert [row["method"] for row in found[1]] == ["dense", *kinds[:3], "blockcopy", *kinds[3:]]
    for eager, row in zip(*found, strict=True):
        assert row["method"] == eager["method"]
        assert set(row["ms_per_stage"]) == set(eager["ms_per_stage"])
        assert (row["ms_block_lists"] is None) == (eager["ms_block_lists"] is None)
        if eager["gmacs_per_stage"]:
            # Heads of a graph run for a fixed number of detections.
            assert row["gmacs_per_stage"]["heads"] >= eager["gmacs_per_stage"]["heads"] > 0
        if row["method"] == "blockcopy":
            # A few of its draws differ with the last bits of what was learned.
            (point,), (expected,) = row["warm_course"], eager["warm_course"]
            assert point == pytest.approx(expected, abs=0.1)
            assert row["executed_fraction"] == pytest.approx(eager["executed_fraction"], abs=0.1)
            continue
        for key in ("executed_fraction", "AP", "gain_share"):
            expected = None if eager[key] is None else pytest.approx(eager[key], rel=1e-3)
            assert row[key] == expected, (row["method"], key)
        assert row["gmacs_per_stage"].get("network") == eager["gmacs_per_stage"].get("network")
