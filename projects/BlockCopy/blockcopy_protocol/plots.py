"""Accuracy against cost, one curve per kind of method."""

import itertools
import statistics

from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from blockcopy_d2.atomic import atomic_write

from .published import published_points

__all__ = ["extent_of", "plot_trade_off", "quantity", "spread_of", "title_of"]

# Titles of kinds of methods. A further policy has its own name.
_TITLES = {
    "stock": "stock Detectron2",
    "dense": "dense",
    "blockcopy": "BlockCopy",
    "frame_difference": "frame difference",
    "random": "random blocks",
    "every_second_frame": "every 2nd frame",
    "every_third_frame": "every 3rd frame",
    "every_fourth_frame": "every 4th frame",
    "three_quarters_resolution": "3/4 resolution",
    "half_resolution": "1/2 resolution",
    "quarter_resolution": "1/4 resolution",
    "moved_difference": "moved difference",
    "moved_difference_without_age": "moved difference, no age",
    "every_second_frame_moved": "every 2nd frame, moved",
    "every_third_frame_moved": "every 3rd frame, moved",
    "every_fourth_frame_moved": "every 4th frame, moved",
}

# Name of a curve: the methods on it.
_RATES = ("every_second_frame", "every_third_frame", "every_fourth_frame")
_CURVES = {
    "stock Detectron2": ("stock",),
    "dense": ("dense",),
    "BlockCopy": ("blockcopy",),
    "frame difference": ("frame_difference",),
    "random blocks": ("random",),
    "lower frame rate": _RATES,
    "lower resolution": ("three_quarters_resolution", "half_resolution", "quarter_resolution"),
    "moved difference": ("moved_difference",),
    "moved difference, no age": ("moved_difference_without_age",),
    "lower frame rate, moved": tuple(f"{kind}_moved" for kind in _RATES),
}

# Colours of Okabe and Ito, which also the colour-blind can tell apart.
_STYLES = {
    "stock Detectron2": {"color": "#8C8C8C", "marker": "P", "markersize": 9, "linestyle": "none"},
    "dense": {"color": "#000000", "marker": "*", "markersize": 13, "linestyle": "none"},
    "BlockCopy": {"color": "#0072B2", "marker": "o", "markersize": 7, "linewidth": 2.2},
    "frame difference": {"color": "#D55E00", "marker": "s", "markersize": 5.5},
    "random blocks": {"color": "#8C8C8C", "marker": "^", "markersize": 6},
    "lower frame rate": {"color": "#009E73", "marker": "D", "markersize": 6},
    "lower resolution": {"color": "#CC79A7", "marker": "v", "markersize": 7},
    "moved difference": {"color": "#E69F00", "marker": "s", "markersize": 5.5},
    "moved difference, no age": {"color": "#E69F00", "marker": "x", "markersize": 6},
    "lower frame rate, moved": {"color": "#56B4E9", "marker": "d", "markersize": 6},
}
_PUBLISHED = {"color": "#666666", "marker": "o", "fillstyle": "none", "linestyle": "none"}
# Style of a policy beside the config's.
_OTHER = {"marker": "o", "markersize": 6, "linestyle": "--"}
_OTHER_COLORS = ("#882255", "#332288", "#117733")


def quantity(number, noun):
    """
    Returns:
        str: such as "1 clip" or "2 clips".
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def extent_of(results):
    """
    Args:
        results (dict): content of results.json.

    Returns:
        str: the clips that were run whole, such as "20 clips".
    """
    return quantity(results["clips"], "clip") if results["clips"] else "a part of a clip"


def title_of(kind):
    """
    Args:
        kind (str): the key "method" of a row.

    Returns:
        str: its title.
    """
    return _TITLES.get(kind, kind)


def plot_trade_off(results, metric, cost, label, path):
    """
    Draw accuracy against a cost, with the points that others have published for the data set. Their
    times are those on a GTX 1080 Ti, or scaled to one. The cost of methods that skip frames is
    their mean, since their median would show one kind of frame; that of others is their median.

    Args:
        results (dict): content of results.json. Rows without the metric or the cost are left out.
        metric (str): the key of the accuracy in a row, such as "AP".
        cost (str): the key of the cost in a row, such as "gmacs".
        label (str): name of the cost, with its unit.
        path (str or Path): path of the PNG file.
    """
    figure = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    kinds_of, styles = _curves(results)
    for title, kinds in kinds_of.items():
        points = sorted(
            (_cost(row, cost), row[metric], row["target"] or 0, spread_of(row, metric) or 0)
            for row in results["rows"]
            if row["method"] in kinds and None not in (_cost(row, cost), row.get(metric))
        )
        if not points:
            continue
        costs, accuracies, targets, spreads = zip(*points)
        on_top, style = (3 if title in ("dense", "BlockCopy") else 2), styles[title]
        axes.plot(costs, accuracies, label=title, zorder=on_top, **style)
        if any(spreads):
            bars = {"fmt": "none", "ecolor": style["color"], "elinewidth": 1, "capsize": 2}
            axes.errorbar(costs, accuracies, yerr=spreads, zorder=on_top, **bars)
        if title == "dense":
            axes.axhline(accuracies[0], color=style["color"], linestyle=":", linewidth=1, alpha=0.6)
        for x, y, target in zip(costs, accuracies, targets) if title == "BlockCopy" else ():
            axes.annotate(
                f"$\\tau$ = {target:g}",
                (x, y),
                xytext=(0, 9),
                textcoords="offset points",
                ha="center",
                color=style["color"],
                fontsize=9,
                zorder=4,
                path_effects=[withStroke(linewidth=3, foreground="white")],
            )
    published = published_points(results["dataset"], metric, cost)
    timed = cost == "ms_median"
    origin = "as published, scaled to a GTX 1080 Ti" if timed else "as published"
    for index, (x, y, _) in enumerate(published):
        axes.plot(x, y, label=None if index else origin, zorder=1, **_PUBLISHED)
    axes.set_xlabel(label)
    axes.set_ylabel(metric)
    if published and timed:
        # Machines of several years lie far apart.
        axes.set_xscale("log")
        # Names of points need room beside them.
        axes.margins(x=0.15)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.margins(y=0.15)
    axes.grid(color="#E3E3E3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False, loc="best" if published else "lower right")
    title = f"{results['dataset']}, {extent_of(results)}"
    axes.set_title(title, fontsize=10, loc="left")
    _name_points(axes, published)
    with atomic_write(path) as temporary:
        figure.savefig(temporary)


def _name_points(axes, points):
    """Writes the names of points below or above them, where no other name is."""
    style = {
        "color": _PUBLISHED["color"],
        "fontsize": 6,
        "ha": "center",
        "va": "center",
        "zorder": 1,
    }
    if points:
        axes.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    for x, y, name in points:
        text = axes.annotate(name, (x, y), (0, 0), textcoords="offset points", **style)
        for height in (-9, 9, -17, 17):
            text.xyann = (0, height)
            # With some room, since the layout moves a little when the figure is saved.
            box = text.get_window_extent().padded(2)
            if not box.count_overlaps(boxes):
                break
        boxes.append(box)


def _curves(results):
    """
    Returns:
        tuple[dict, dict]: the kinds of methods, and the style, of each curve.
    """
    known = {kind for kinds in _CURVES.values() for kind in kinds}
    others = dict.fromkeys(row["method"] for row in results["rows"] if row["method"] not in known)
    colors = itertools.cycle(_OTHER_COLORS)
    styles = {kind: {**_OTHER, "color": color} for kind, color in zip(others, colors)}
    return {**_CURVES, **{kind: (kind,) for kind in others}}, {**_STYLES, **styles}


def _cost(row, cost):
    mean = {"ms_median": "ms_mean"}.get(cost, cost)
    return row.get(cost) if row.get(cost) is not None else row.get(mean)


def spread_of(row, metric):
    """
    Args:
        row (dict): a row of results.json.
        metric (str):

    Returns:
        float or None: standard deviation over the seeds of the policy's draws, or over neighbouring
        targets if it draws nothing; None for one run.
    """
    values = [run.get(metric) for run in row.get("seeds") or row.get("targets", ())]
    return None if len(values) < 2 or None in values else statistics.stdev(values)
