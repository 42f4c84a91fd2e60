"""Runs of one protocol put together."""

import copy
import json

import pytest

pytestmark = pytest.mark.usefixtures("project")


@pytest.fixture
def parts():
    """Two runs: a seed of one target each, and a second target."""
    row = {"gmacs": 1.0, "ms_per_stage": {"network": 2.0}, "ms_median": None}
    run = {
        "config_file": "c.yaml",
        "dataset": "some_val",
        "blockcopy": {"TARGET": 0.3, "POLICY": {"NAME": "LearnedPolicy", "SEED": 0}},
        "complete": True,
        "rows": [
            {"method": "dense", "target": None, "draws": False, "AP": 50.0, **row},
            {"method": "blockcopy", "target": 0.5, "draws": True, "AP": 40.0, **row},
        ],
    }
    run["rows"][1]["course"] = [{"frames": 20, "executed": 0.6, "gain_share": None}]
    other = copy.deepcopy(run)
    other["blockcopy"]["POLICY"]["SEED"] = 1
    other["rows"][0]["AP"] = 50.1
    other["rows"][1].update(AP=44.0, gmacs=3.0)
    other["rows"][1]["course"][0]["executed"] = 0.4
    third = {"method": "blockcopy", "target": 0.3, "draws": True, "AP": 30.0, **row}
    other["rows"].append(third)
    # Only the second run had --warm-course.
    other["rows"][1]["warm_course"] = [{"frames": 9, "executed": 0.9, "gain_share": 0.9}]
    return [run, other]


def test_seeds_are_put_together_and_targets_side_by_side(parts):
    from blockcopy_protocol.merging import merge_results
    from blockcopy_protocol.plots import spread_of

    parts[1]["timed"] = False
    kinds = ("every_third_frame", "every_second_frame")
    for part, kind in zip(parts, kinds):
        part["rows"].append({**part["rows"][0], "method": kind})
    merged = merge_results(parts)
    found = [(row["method"], row["target"], row["AP"]) for row in merged["rows"]]
    # Dense draws nothing: it is the first run's. The order is that of one run.
    fixed = [("dense", None, 50.0), (kinds[1], None, 50.1), (kinds[0], None, 50.0)]
    assert found == [*fixed, ("blockcopy", 0.3, 30.0), ("blockcopy", 0.5, 42.0)]
    row = merged["rows"][-1]
    assert [seed["AP"] for seed in row["seeds"]] == [40.0, 44.0] and merged["seeds"] == 2
    assert row["gmacs"] == 2.0 and row["ms_median"] is None
    assert row["ms_per_stage"] == {"network": 2.0}
    assert row["course"] == [{"frames": 20, "executed": 0.5, "gain_share": None}]
    assert row["warm_course"] == parts[1]["rows"][1]["warm_course"]
    assert spread_of(row, "AP") == pytest.approx(8**0.5)
    assert merged["complete"] and not merged["timed"]
    # Seeds of one run and those of another
    parts[0]["blockcopy"]["POLICY"]["SEED"] = 2
    again = merge_results([merge_results(parts[1:] + parts[:1]), *parts[1:0]])
    assert [seed["AP"] for seed in again["rows"][-1]["seeds"]] == [44.0, 40.0]


def test_what_draws_nothing_keeps_its_targets(parts):
    from blockcopy_protocol.merging import merge_results
    from blockcopy_protocol.plots import spread_of

    targets = [{"target": target, "AP": ap} for target, ap in ((0.5, 41.0), (0.49, 43.0))]
    for part in parts:
        part["rows"][1]["draws"] = False
    parts[1]["rows"][1]["targets"] = targets
    merged = merge_results(parts)
    # The run with most of them has the row.
    assert merged["rows"][2] == parts[1]["rows"][1] and merged["seeds"] == 2
    assert spread_of(merged["rows"][2], "AP") == pytest.approx(2**0.5)


def test_one_run_stays_as_it_is(parts):
    from blockcopy_protocol.merging import merge_results

    assert merge_results(parts[:1]).items() >= parts[0].items()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda run: run.update(dataset="other_val"), "differ in dataset: some_val and other_val"),
        (lambda run: run["blockcopy"].update(BLOCK_SIZE=64), "differ in blockcopy"),
        (lambda run: run["blockcopy"]["POLICY"].update(SEED=0), "with the same MODEL.BLOCKCOPY"),
        (lambda run: run.pop("blockcopy"), "differ in blockcopy"),
        (
            lambda run: run["rows"][1].pop("draws"),
            "method blockcopy, one of them made by a version",
        ),
    ],
)
def test_runs_of_other_things_are_refused(parts, change, message, tmp_path):
    import update_readme

    change(parts[1])
    paths = [tmp_path / f"{index}.json" for index in range(2)]
    for path, part in zip(paths, parts):
        path.write_text(json.dumps(part))
    with pytest.raises(SystemExit, match=message):
        update_readme.main([str(path) for path in paths])
