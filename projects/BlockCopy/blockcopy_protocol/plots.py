"""Accuracy against cost, one curve per kind of method."""

from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from blockcopy_d2.atomic import atomic_write

__all__ = ["TITLES", "plot_trade_off", "quantity"]

# What a kind of method is called.
TITLES = {
    "dense": "dense",
    "blockcopy": "BlockCopy",
    "frame_difference": "frame difference",
    "random": "random blocks",
    "every_second_frame": "every 2nd frame",
    "every_third_frame": "every 3rd frame",
    "half_resolution": "half resolution",
    "moved_difference": "moved difference",
    "moved_difference_without_age": "moved difference, no age",
    "every_second_frame_moved": "every 2nd frame, moved",
    "every_third_frame_moved": "every 3rd frame, moved",
}

# Colours of Okabe and Ito, which also the colour-blind can tell apart.
_STYLES = {
    "dense": {"color": "#000000", "marker": "*", "markersize": 13, "linestyle": "none"},
    "blockcopy": {"color": "#0072B2", "marker": "o", "markersize": 7, "linewidth": 2.2},
    "frame_difference": {"color": "#D55E00", "marker": "s", "markersize": 5.5},
    "random": {"color": "#8C8C8C", "marker": "^", "markersize": 6},
    "every_second_frame": {"color": "#009E73", "marker": "D", "markersize": 6, "linestyle": "none"},
    "every_third_frame": {"color": "#009E73", "marker": "d", "markersize": 6, "linestyle": "none"},
    "half_resolution": {"color": "#CC79A7", "marker": "v", "markersize": 7, "linestyle": "none"},
    "moved_difference": {"color": "#E69F00", "marker": "s", "markersize": 5.5},
    "moved_difference_without_age": {"color": "#E69F00", "marker": "x", "markersize": 6},
    "every_second_frame_moved": {
        "color": "#56B4E9",
        "marker": "D",
        "markersize": 6,
        "linestyle": "none",
    },
    "every_third_frame_moved": {
        "color": "#56B4E9",
        "marker": "d",
        "markersize": 6,
        "linestyle": "none",
    },
}


def quantity(number, noun):
    """
    Returns:
        str: such as "1 clip" or "2 clips".
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def plot_trade_off(results, metric, cost, label, path):
    """
    Draw accuracy against a cost.

    Args:
        results (dict): of results.json. Rows without the metric or the cost are left out.
        metric (str): the key of the accuracy in a row, such as "AP".
        cost (str): the key of the cost in a row, such as "gmacs".
        label (str): what the cost is, with its unit.
        path (str or Path): of the PNG file.
    """
    figure = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    for kind, style in _STYLES.items():
        points = sorted(
            (row[cost], row[metric], row["target"])
            for row in results["rows"]
            if row["method"] == kind and None not in (row.get(cost), row.get(metric))
        )
        if not points:
            continue
        costs, accuracies, targets = zip(*points)
        on_top = 3 if kind in ("dense", "blockcopy") else 2
        axes.plot(costs, accuracies, label=TITLES[kind], zorder=on_top, **style)
        if kind == "dense":
            axes.axhline(accuracies[0], color=style["color"], linestyle=":", linewidth=1, alpha=0.6)
        for x, y, target in zip(costs, accuracies, targets) if kind == "blockcopy" else ():
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
    axes.set_xlabel(label)
    axes.set_ylabel(metric)
    axes.set_xlim(left=0)
    axes.margins(y=0.15)
    axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.grid(color="#E3E3E3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    title = f"{results['dataset']}, {quantity(results['clips'], 'clip')}"
    axes.set_title(title, fontsize=10, loc="left")
    with atomic_write(path) as temporary:
        figure.savefig(temporary)
