"""A run as a table and plots, and their place in the README."""

import json
import shutil

import pytest

from tests.projects.names import PROJECT

pytestmark = pytest.mark.usefixtures("project")


def test_spread_is_the_standard_deviation(results_file):
    from blockcopy_protocol.report import markdown_table

    results = json.loads(results_file.read_text())
    results["rows"][1]["seeds"] = [{"AP": 44.0, "AP50": 69.0}, {"AP": 45.0, "AP50": 69.0}]
    assert "44.5 ± 0.7" in markdown_table(results) and "69.0 ± 0.0" in markdown_table(results)
    results["rows"][1]["seeds"].pop()
    assert "±" not in markdown_table(results)


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
