"""Times of a run that had its device to itself, beside the scores of one that had not."""

import json

import pytest

pytestmark = pytest.mark.usefixtures("project")


@pytest.fixture
def runs(results_file, tmp_path):
    """Files of a scored run without times, and of a timed one, and a function to change the one."""
    results = json.loads(results_file.read_text())
    results["machine"] |= {"cores": 16}
    for row in results["rows"]:
        row["executed_fraction"] = row["target"] or 1.0
    results_file.write_text(json.dumps({**results, "timed": False}))
    timed = json.loads(json.dumps(results))
    timed |= {"warm_passes": 1, "clips": 2, "frames": 40, "date": "2031-01-01", "revision": "abc"}
    timed["machine"]["threads"] = 12
    for index, row in enumerate(timed["rows"]):
        row |= {"AP": 1.0, "gmacs": 1.0, "ms_median": 5.0 + index, "ms_mean": 6.0 + index}
    timed["rows"][2]["ms_median"] = None
    timed["rows"].reverse()
    path = tmp_path / "timed.json"

    def write(change=lambda run: None):
        change(timed)
        path.write_text(json.dumps(timed))
        return [str(results_file), "--times", str(path)]

    return write


def test_times_come_from_the_other_run(runs, tmp_path, monkeypatch):
    import update_readme
    from matplotlib.figure import Figure

    drawn, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, path: (drawn.append(figure), save(figure, path))
    )
    readme = tmp_path / "README.md"
    readme.write_text("<!-- a results: begin --><!-- a results: end -->")
    update_readme.main([*runs(), "--readme", str(readme), "--section", "a"])
    text = readme.read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert [row[0:1] + row[3:8] for row in rows if len(row) == 9][2:] == [
        ["dense", "45.0", "70.0", "77.0", "5.00", "6.00"],
        ["BlockCopy", "44.5", "69.0", "38.0", "6.00", "7.00"],
        ["random blocks", "-", "-", "30.0", "-", "8.00"],
    ]
    assert (
        "3 clips (60 frames) of some_val" in text and "2 threads), torch 9.9, 2030-01-02." in text
    )
    assert (
        "Times: another run, which had its device to itself, of 2 clips (40 frames), Some GPU (P,"
        " 12 threads), torch 9.9, 2031-01-01, revision abc, policies warmed on 7 clips of"
        " some_train."
    ) in text
    assert "(figures/a_ap_ms.png)" in text and (tmp_path / "figures" / "a_ap_ms.png").is_file()
    points = {line.get_label(): line.get_xydata().tolist() for line in drawn[1].axes[0].lines}
    assert points["dense"] == [[5.0, 45.0]] and points["BlockCopy"] == [[6.0, 44.5]]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda run: run.update(timed=False), "was --untimed: it has no times"),
        (lambda run: run.update(config_file="d.yaml"), "differ in config_file: c.yaml and d.yaml"),
        (
            lambda run: run.update(blockcopy={"POLICY": {"SEED": 0, "A": 1}}),
            "blockcopy.POLICY.A: None and 1",
        ),
        (lambda run: run["machine"].update(device="cpu"), "differ in device: Some GPU and cpu"),
        (lambda run: run["machine"].update(cores=8), "differ in cores: 16 and 8"),
        (lambda run: run["rows"].pop(0), "has no times of random blocks at target 0.3"),
        (lambda run: run["rows"][1].update(ms_mean=None), "has no times of BlockCopy at target"),
        (
            lambda run: run["rows"][1].update(executed_fraction=0.41),
            "BlockCopy at target 0.3 executed 0.300 of the blocks .* and 0.410 in the run of",
        ),
    ],
)
def test_times_of_other_things_are_refused(runs, change, message):
    import update_readme

    with pytest.raises(SystemExit, match=message):
        update_readme.main(runs(change))


@pytest.mark.parametrize("burst", [1.0, 2.0])
def test_keys_that_are_newer_than_a_run_have_their_defaults(runs, results_file, burst, tmp_path):
    import update_readme

    results = json.loads(results_file.read_text())
    results["blockcopy"] = {"BLOCK_SIZE": 64, "POLICY": {"SEED": 3}}
    results_file.write_text(json.dumps(results))
    options = {"BLOCK_SIZE": 64, "POLICY": {"SEED": 0, "BURST": burst}}
    command = [*runs(lambda run: run.update(blockcopy=options)), "--readme", str(tmp_path / "none")]
    # The default of BURST is 1. Without a README the command ends after its checks.
    message = "No such file" if burst == 1 else "blockcopy.POLICY.BURST: 1.0 and 2.0."
    with pytest.raises(SystemExit, match=message):
        update_readme.main(command)


def test_further_policies_have_times_of_the_same_weights(runs, results_file):
    import update_readme

    results = json.loads(results_file.read_text()) | {"other_policies": {"LearnedPolicy": "a"}}
    results_file.write_text(json.dumps(results))
    with pytest.raises(SystemExit, match="differ in the weights of LearnedPolicy: a and None"):
        update_readme.main(runs())
