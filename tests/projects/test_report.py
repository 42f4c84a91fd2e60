"""A run as a table and plots, and their place in the README."""

import json
import shutil
from types import SimpleNamespace

import pytest

from tests.projects.names import PROJECT

pytestmark = pytest.mark.usefixtures("project")


def test_spread_is_the_standard_deviation(results_file):
    from blockcopy_protocol.report import _provenance, markdown_table

    results = json.loads(results_file.read_text())
    results["rows"][1]["seeds"] = [{"AP": 44.0, "AP50": 69.0}, {"AP": 45.0, "AP50": 69.0}]
    assert "deviation of 2 seeds." in _provenance(results)
    assert _provenance({**results, "clips": 0}).startswith("a part of a clip (")
    results["rows"][2] |= {"seeds": [{"AP": None, "AP50": None}] * 3}
    assert "deviation of 2 or 3 seeds." in _provenance(results)
    near = zip((0.294, 0.306), results["rows"][1].pop("seeds"))
    results["rows"][1]["targets"] = [{"target": target, **own} for target, own in near]
    runs = "of 3 seeds, and of 2 targets within 2 % of tau where nothing is drawn."
    assert runs in _provenance(results)
    assert "44.5 ± 0.7" in markdown_table(results) and "69.0 ± 0.0" in markdown_table(results)
    results["rows"][1]["targets"].pop()
    assert "±" not in markdown_table(results)


def test_published_rows_stand_below_those_of_their_data_set(results_file, tmp_path):
    from blockcopy_protocol.published import published_table
    from blockcopy_protocol.report import write_report

    results = json.loads(results_file.read_text())
    assert published_table(results) == ""
    results["dataset"] = "citypersons_video_val"
    for row in results["rows"]:
        row["ms_per_stage"] = {"network": 90.0, "heads": 11.0}
    write_report(results, tmp_path / "out")
    text = (tmp_path / "out" / "results.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    found = {row[1]: row[2:-1] for row in rows if len(row) > 2}
    assert "ICCV 2021, Table 1" in text
    columns = ["backbone", "test set", "MR", "Bare", "Partial", "Heavy", "GMACs", "s/frame"]
    head = next(row for row in rows if row[1:3] == ["method", "backbone"])
    assert head[2:-1] == columns
    own = ["ResNet-50", "12.5", "11.4", "7.6", "10.8", "49.5", "393", "0.151"]
    assert found["CSP + BlockCopy, tau 0.3"] == own
    assert found["MGAN"] == ["VGG-16", "-", "11.0", "-", "-", "50.3", "1104", "0.224"]


def test_a_run_without_scores_makes_the_folder_of_its_report(results_file, tmp_path):
    from blockcopy_protocol.report import write_report

    results = json.loads(results_file.read_text()) | {"metrics": [], "timed": False}
    write_report(results, tmp_path / "new" / "out")
    assert {"results.md", "course.png"} == {x.name for x in (tmp_path / "new" / "out").iterdir()}


def test_a_test_split_has_no_metrics(tmp_path):
    from blockcopy_protocol.results import ResultsHook

    scoring = SimpleNamespace(scores={"dense": {}, "blockcopy 0.3": {}}, failures={})
    hook = ResultsHook(str(tmp_path), [], {}, scoring, description={})
    hook.trainer = SimpleNamespace(failures=[])
    hook._write(complete=True)
    assert json.loads((tmp_path / "results.json").read_text())["metrics"] == []


def test_every_published_row_names_its_columns(results_file):
    from blockcopy_protocol.published import PUBLISHED, published_table

    results = json.loads(results_file.read_text())
    for dataset, published in json.loads(PUBLISHED.read_text()).items():
        columns = {tuple(row) for row in published["rows"]}
        assert len(columns) == 1 and published["source"], dataset
        lines = published_table({**results, "dataset": dataset}).splitlines()
        assert len(lines) == 4 + len(published["rows"]), dataset


def test_published_points_of_other_persons_do_not_stand_beside_heavy():
    from blockcopy_protocol.published import published_points

    heavy, ho = (published_points("citypersons_video_val", x, "gmacs") for x in ("Heavy", "HO"))
    assert (1128, 49.3, "CSP") in heavy and "MGAN" not in [name for _, _, name in heavy]
    assert ho == [(1104, 50.3, "MGAN"), (1665, 45.4, "MGAN, scale x1.3")]


def test_published_times_are_scaled_by_their_factor():
    from blockcopy_protocol.published import PUBLISHED

    rows = json.loads(PUBLISHED.read_text())["cityscapes_video_fine_sem_seg_val"]["rows"]
    scaled = [row for row in rows if row["seconds"] is not None]
    assert len(scaled) == 8
    for row in scaled:
        assert row["seconds"] == pytest.approx(row["source_seconds"] * row["factor"], abs=5.1e-4)
        assert row["gpu"] and row["factor_from"] and row["mIoU"], row["method"]
        assert (row["factor"] == 1) == (row["gpu"] == "GTX 1080 Ti")
    assert {row["factor"] for row in scaled} == {1, round(52.18 / 199.41, 3)}


def test_published_points_stand_in_figure_7(results_file, tmp_path, monkeypatch):
    from blockcopy_protocol.plots import plot_trade_off
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn.append(figure))
    results = json.loads(results_file.read_text())
    for row in results["rows"]:
        row["mIoU"] = 70.0
    for dataset in ("cityscapes_video_fine_sem_seg_val", "some_val"):
        results["dataset"] = dataset
        plot_trade_off(results, "mIoU", "ms_median", "ms", tmp_path / "plot.png")
    (published,), (own,) = (figure.axes for figure in drawn)
    points = {line.get_label(): line.get_xydata().tolist() for line in published.lines}
    assert points["as published, scaled to a GTX 1080 Ti"] == [[59, 76.12]]
    names = [text.get_text() for text in published.texts]
    # The other methods have no times.
    others = ["SwiftNet-RN50 + BlockCopy, tau 0.5", "SwiftNet-RN50", "DVSNet, its most accurate"]
    others += ["DVSNet, its fastest", "DFF, a key frame in 5"]
    others += [f"Accel-{depth}, a key frame in 5" for depth in (18, 50, 101)]
    assert names == ["$\\tau$ = 0.3", *others] and len(own.texts) == 1
    assert published.get_xscale() == "log" and own.get_xscale() == "linear"
    # Names of neighbours and numbers of ticks do not lie on each other.
    drawn[0].draw_without_rendering()
    low, high = published.get_xlim()
    ticks = [text for text in published.get_xticklabels(which="both") if text.get_text()]
    ticks = [text for text in ticks if low <= text.get_position()[0] <= high]
    assert {"50", "100", "200"} <= {text.get_text() for text in ticks}
    for texts in (published.texts, ticks):
        boxes = [text.get_window_extent() for text in texts]
        for index, box in enumerate(boxes):
            assert box.count_overlaps(boxes) == 1, texts[index]
    assert all(box.x1 <= drawn[0].bbox.x1 for box in boxes)


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
    results = json.loads(results_file.read_text())
    point = {"frames": 20, "executed": 0.4, "gain_share": 0.5}
    results["rows"][1] |= {"course": [point], "warm_course": [point]}
    results_file.write_text(json.dumps(results))
    markers = [
        f"<!-- {name}: {word} -->"
        for name in ("results", "other results")
        for word in ("begin", "end")
    ]
    readme.write_text("\n".join(markers))
    update_readme.main([str(results_file), "--readme", str(readme), "--section", "other"])
    text = readme.read_text()
    assert text.startswith("\n".join(markers[:3])) and "44.5" in text
    for name in ("other_ap_ms.png", "other_course.png"):
        assert f"(figures/{name})" in text and (tmp_path / "figures" / name).is_file()


def test_readme_may_show_the_stages(results_file, tmp_path):
    import update_readme

    results = json.loads(results_file.read_text())
    for row in results["rows"]:
        row["ms_per_stage"] = {"network": 90.0, "heads": 11.0}
    results_file.write_text(json.dumps(results))
    readme = tmp_path / "README.md"
    readme.write_text("<!-- t results: begin --><!-- t results: end -->")
    command = [str(results_file), "--readme", str(readme), "--section", "t", "--stages"]
    update_readme.main(command)
    text = readme.read_text()
    assert "| task network |" in text.replace("  ", "") and "gain share" not in text
    assert "(figures/t_stages.png)" in text and (tmp_path / "figures" / "t_stages.png").is_file()
    # Times of a run that shared its machine are not shown.
    results_file.write_text(json.dumps({**results, "timed": False}))
    with pytest.raises(SystemExit, match="was --untimed"):
        update_readme.main(command)
    assert readme.read_text() == text


def test_readme_without_markers_stays(results_file, tmp_path):
    import update_readme

    readme = tmp_path / "README.md"
    readme.write_text("# Mine\n")
    with pytest.raises(SystemExit, match="needs the lines <!-- results: begin -->"):
        update_readme.main([str(results_file), "--readme", str(readme)])
    assert readme.read_text() == "# Mine\n"


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "No such file"),
        (b"", "is not JSON.*whole"),
        (b'{"rows": [{"method": "dense", ', "is not JSON.*whole"),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", 'has no "rows"'),
        (b'{"rows": ["dense"]}', 'has no "rows"'),
        (b'{"rows": [{"AP": 1}]}', "A row of .* has no method, target"),
        (b'{"rows": [{"method": "dense", "target": null}]}', "has no complete"),
        (
            b'{"rows": [{"method": "dense", "target": null}], "complete": true}',
            "has no config_file, dataset, .* Run the protocol anew",
        ),
    ],
)
def test_unusable_results_are_named(content, message, tmp_path):
    import update_readme

    path = tmp_path / "results.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit, match=f"error: .*{message}") as error:
        update_readme.main([str(path), "--report", str(tmp_path)])
    assert path.name in str(error.value) and len(list(tmp_path.iterdir())) == path.exists()
