"""The course of a run: gain share and executed share over the frames since policies started."""

import math
import statistics

from matplotlib.figure import Figure

from blockcopy_d2.atomic import atomic_write

from .plots import title_of

__all__ = ["Course", "drawn_rows", "plot_course", "plot_courses"]

# Keys of a point, in the order of the axes.
_CURVES = ("gain_share", "executed")
# Frames per point of a curve; of a longer one so many times as many that it has this many points.
WINDOW = 20
_MOST_POINTS = 60
# Colours of Okabe and Ito.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C", "#000000")
_STYLES = ("--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)))


class Course:
    """Executed blocks of every frame of a method, and the information gain in them."""

    def __init__(self):
        self._frames = []

    def add(self, active, gain):
        """
        Args:
            active (Tensor): bool (1, GH, GW), the blocks that a frame executed.
            gain (Tensor): float (1, GH, GW), gain of the frame between dense outputs; finite.
        """
        gained = float(gain[active].sum())
        self._frames.append((float(active.float().mean()), gained, float(gain.sum())))

    @staticmethod
    def points(courses):
        """
        Args:
            courses (list[Course]): courses of the methods of a row, on the same frames.

        Returns:
            list[dict]: one for every :data:`WINDOW` frames, or a multiple of it, with "frames" so
            far, "executed" (mean share of the blocks) and "gain_share" (share of these frames'
            gain; None if there was none).
        """
        points = []
        frames = max(len(x._frames) for x in courses)
        window = WINDOW * max(1, math.ceil(frames / WINDOW / _MOST_POINTS))
        for start in range(0, frames, window):
            parts = [frame for x in courses for frame in x._frames[start : start + window]]
            executed, gained, total = map(sum, zip(*parts))
            points.append(
                {
                    "frames": start + len(parts) // len(courses),
                    "executed": executed / len(parts),
                    "gain_share": gained / total if total else None,
                }
            )
        return points


def plot_course(results, path):
    """
    Draw the course of one run: see :func:`plot_courses`.

    Args:
        results (dict): content of results.json.
        path (str or Path): path of the PNG file.
    """
    plot_courses({"": results}, path)


def plot_courses(runs, path):
    """
    Draw gain share and executed share over frames, a column per run and a curve per method that
    follows a target. A colour is a target and a style a method, in all columns. If a run measured
    them while policies were warmed, its curves begin there, and a line shows the end of it.

    Args:
        runs (dict[str, dict]): title of a run -> content of its results.json. Rows without a target
            or a course are left out.
        path (str or Path): path of the PNG file.
    """
    figure = Figure(figsize=(2.2 + 4.2 * len(runs), 5.4), dpi=150, layout="constrained")
    columns = figure.subplots(2, len(runs), sharex="col", sharey="row", squeeze=False).T
    drawn = [drawn_rows(results) for results in runs.values()]
    targets = sorted({row["target"] for rows in drawn for row in rows})
    others = sorted({row["method"] for rows in drawn for row in rows} - {"blockcopy"})
    colors = {target: _COLORS[i % len(_COLORS)] for i, target in enumerate(targets)}
    styles = {method: _STYLES[i % len(_STYLES)] for i, method in enumerate(others)}
    for panels, (title, results) in zip(columns, runs.items()):
        _draw(panels, results, colors, styles)
        panels[0].set_title(title)
    for axes, label in zip(columns[0], ("share of the information gain", "executed share")):
        axes.set_ylabel(label)
    with atomic_write(path) as temporary:
        figure.savefig(temporary)


def drawn_rows(results):
    """
    Args:
        results (dict): content of results.json.

    Returns:
        list[dict]: its rows that have a course.
    """
    return [row for row in results["rows"] if row["target"] is not None and row.get("course")]


def _draw(panels, results, colors, styles):
    """Draws gain share and executed share of a run on two axes."""
    rows = drawn_rows(results)
    warm_courses = [row["warm_course"] for row in rows if row.get("warm_course")]
    warmed = max((points[-1]["frames"] for points in warm_courses), default=0)
    window = max((points[0]["frames"] for points in warm_courses), default=0)
    for axes, key in zip(panels, _CURVES):
        for row in rows:
            warming = row.get("warm_course") or []
            # As smooth as the curves before it.
            measured = _averaged(row["course"], window)
            points = [(point["frames"], point[key]) for point in warming]
            if warming and warming[-1]["frames"] < warmed:
                points.append((warmed, math.nan))  # Others were warmed for longer.
            points += [(warmed + point["frames"], point[key]) for point in measured]
            points = [(frame, value) for frame, value in points if value is not None]
            title = f"{title_of(row['method'])}, $\\tau$ = {row['target']:g}"
            axes.plot(
                *zip(*points),
                marker="o" if len(points) == 1 else None,  # A line of one point is not seen.
                label=title,
                color=colors[row["target"]],
                linestyle=styles.get(row["method"], "-"),
                linewidth=2.2 if row["method"] == "blockcopy" else 1.2,
            )
        if warmed:
            axes.axvline(warmed, color="#8C8C8C", linestyle=":", linewidth=1)
        axes.set_ylim(0, 1.02)
        axes.grid(color="#E3E3E3", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[1].set_xlabel("frames since the start, first ones of clips left out")
    every = results.get("blockcopy", {}).get("LEARNER", {}).get("UPDATE_EVERY")
    if every:
        scale = (lambda frames: frames / every, lambda updates: updates * every)
        panels[0].secondary_xaxis("top", functions=scale).set_xlabel("updates of a policy")
    if rows:
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.22)}
        panels[1].legend(frameon=False, fontsize=8, ncols=2, **below)


def _averaged(points, window):
    """Returns means of so many points in a row that they stand for ``window`` frames or more."""
    averaged, start = [], 0
    for end, point in enumerate(points, start=1):
        first = points[start - 1]["frames"] if start else 0
        if point["frames"] - first >= window or end == len(points):
            values = points[start:end]
            averaged.append({"frames": point["frames"], **_means(values)})
            start = end
    return averaged


def _means(points):
    known = {key: [x[key] for x in points if x[key] is not None] for key in _CURVES}
    return {key: statistics.fmean(values) if values else None for key, values in known.items()}
