"""Curves over the frames of a run."""

import json

import pytest
import torch

pytestmark = pytest.mark.usefixtures("project")


def test_points_are_of_windows_of_frames_and_of_all_methods_of_a_row():
    from blockcopy_protocol.course import WINDOW, Course

    first, second = Course(), Course()
    active = torch.tensor([[[True, False]]])
    for index in range(WINDOW + 5):
        gain = torch.tensor([[[1.0, 3.0]]]) if index < WINDOW else torch.zeros(1, 1, 2)
        first.add(active, gain)
        second.add(~active if index < WINDOW else active | True, gain)
    assert Course.points([first]) == [
        {"frames": WINDOW, "executed": 0.5, "gain_share": 0.25},
        {"frames": WINDOW + 5, "executed": 0.5, "gain_share": None},
    ]
    assert Course.points([first, second]) == [
        {"frames": WINDOW, "executed": 0.5, "gain_share": 0.5},
        {"frames": WINDOW + 5, "executed": 0.75, "gain_share": None},
    ]
    assert Course.points([Course()]) == []


def test_long_courses_have_longer_windows():
    from blockcopy_protocol.course import WINDOW, Course

    course, active = Course(), torch.tensor([[[True, False]]])
    for _ in range(61 * WINDOW):
        course.add(active, torch.ones(1, 1, 2))
    points = Course.points([course])
    assert [point["frames"] for point in points[:2]] == [2 * WINDOW, 4 * WINDOW]
    assert len(points) == 31 and points[-1]["frames"] == 61 * WINDOW


def test_curves_begin_with_the_warming(tmp_path, monkeypatch):
    from blockcopy_protocol.course import plot_course
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn.append(figure))

    def points(*values):
        return [
            {"frames": 20 * (index + 1), "executed": value, "gain_share": value / 2}
            for index, value in enumerate(values)
        ]

    rows = [
        {"method": "dense", "target": None, "course": points(1.0)},
        {"method": "blockcopy", "target": 0.3, "course": points(0.3)},
        {"method": "random", "target": 0.3, "course": points(0.4)},
    ]
    rows[1]["warm_course"] = points(0.9, 0.6)
    results = {"rows": rows, "blockcopy": {"LEARNER": {"UPDATE_EVERY": 4}}}
    plot_course(results, tmp_path / "course.png")
    gained, executed = drawn[0].axes
    learned, random, end = (line.get_xydata().tolist() for line in executed.lines)
    assert learned == [[20, 0.9], [40, 0.6], [60, 0.3]] and random == [[60, 0.4]]
    assert {x for x, _ in end} == {40}
    # A line of one point would not be seen.
    assert [line.get_marker() for line in executed.lines[:2]] == ["None", "o"]
    assert [y for _, y in gained.lines[0].get_xydata()] == [0.45, 0.3, 0.15]
    (updates,) = gained.child_axes
    assert updates.get_xlabel() == "updates of a policy"
    drawn[0].draw_without_rendering()
    assert updates.get_xlim() == pytest.approx([limit / 4 for limit in gained.get_xlim()])


def run_on_disk(folder, name, *, target=0.3):
    course = [{"frames": 20, "executed": target, "gain_share": 0.5}]
    rows = [{"method": "blockcopy", "target": target, "course": course}]
    (folder / name).write_text(json.dumps({"rows": rows}))
    return folder / name


def test_runs_are_drawn_side_by_side(tmp_path, monkeypatch):
    import draw_courses
    from matplotlib.figure import Figure

    drawn, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda *args: (drawn.append(args[0]), save(*args)))
    paths = [run_on_disk(tmp_path, f"{target}.json", target=target) for target in (0.1, 0.2)]
    runs = [f"{title}={path}" for title, path in zip(("Street", "CamVid"), paths)]
    draw_courses.main([*runs, "--output", str(tmp_path / "courses.png")])
    assert (tmp_path / "courses.png").read_bytes()[:4] == b"\x89PNG"
    panels = drawn[0].axes
    assert [axes.get_title() for axes in panels] == ["Street", "CamVid", "", ""]
    assert [axes.lines[0].get_ydata()[0] for axes in panels] == [0.5, 0.5, 0.1, 0.2]
    # A colour is a target: here the columns have one each.
    assert panels[0].lines[0].get_color() != panels[1].lines[0].get_color()


@pytest.mark.parametrize(
    "runs, message",
    [
        (["{path}"], "is not TITLE=FILE"),
        (["a={path}", "a={path}"], "two runs have the title 'a'"),
        (["a=nowhere.json"], "nowhere.json"),
        (["a={path}", "--output", "{path}"], "would be lost"),
        (["a={path}", "--output", "{path}.xyz"], "must end in one of .png"),
    ],
)
def test_runs_that_cannot_be_drawn(runs, message, tmp_path, capsys):
    import draw_courses

    path = run_on_disk(tmp_path, "results.json")
    with pytest.raises(SystemExit) as end:
        draw_courses.main([run.format(path=path) for run in runs])
    assert message in capsys.readouterr().err + str(end.value)
    assert json.loads(path.read_text())["rows"]


def test_runs_without_a_course_are_named(tmp_path):
    import draw_courses

    path = run_on_disk(tmp_path, "run.json", target=0.1)
    results = json.loads(open(path).read())
    for row in results["rows"]:
        row.pop("course", None)
    (tmp_path / "run.json").write_text(json.dumps(results))
    with pytest.raises(SystemExit, match="run.json has no method with a course"):
        draw_courses.main([f"a={path}", "--output", str(tmp_path / "courses.png")])
    assert not (tmp_path / "courses.png").exists()
