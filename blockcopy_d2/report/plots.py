"""The plots of the page, as SVG in the page's own colours, so that they follow dark and light."""

import io
import math
import re

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .recording import STAGES, mean

__all__ = ["plot_age", "plot_agreement", "plot_executed", "plot_stages", "plot_sweep"]

# Placeholder colours for variables of the page's CSS.
_INK, _RULE, _PAPER = "#010203", "#010204", "#010205"
_SERIES = ("#020201", "#020202", "#020203", "#020204", "#020205", "#020206")
_VARIABLES = {
    _INK: "var(--ink-soft)",
    _RULE: "var(--rule)",
    _PAPER: "var(--paper)",
    **{color: f"var(--series-{n})" for n, color in enumerate(_SERIES, start=1)},
}
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.7,
    "text.color": _INK,
    "xtick.color": _RULE,
    "ytick.color": _RULE,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
}
# Frames of the smooth line over a noisy one.
_WINDOW = 9


@matplotlib.rc_context(_STYLE)
def plot_executed(recording):
    """str: SVG of the executed share by frame."""
    run = recording.main
    figure, axes = _figure("time_executed", recording)
    axes.plot(100 * np.array(run.executed), color=_SERIES[0], drawstyle="steps-mid")
    if run.target is not None:
        axes.axhline(100 * run.target, color=_INK, linestyle=":", linewidth=1.1)
        beside = dict(xytext=(4, 0), va="center", textcoords="offset points")
        place, units = (1, 100 * run.target), ("axes fraction", "data")
        axes.annotate(f"τ {run.target:g}", place, xycoords=units, **beside)
    axes.set_ylabel("blocks executed (%)")
    axes.set_ylim(0, 104)
    return _svg(figure, "Executed share of the blocks by frame")


@matplotlib.rc_context(_STYLE)
def plot_stages(recording):
    """str: SVG of the milliseconds of each stage by frame, stacked, and of the dense model."""
    run = recording.main
    figure, axes = _figure("time_stages", recording)
    # Stages that took no time are left out, such as motion without an estimator.
    names = [name for name in STAGES if any(run.stages[name])]
    times = 1000 * np.array([run.stages[name] for name in names])
    labels = [f"{name} {1000 * mean(run.stages[name]):.0f}" for name in names]
    frames = np.arange(recording.frames)
    axes.stackplot(frames, times, labels=labels, colors=_SERIES, alpha=0.85, linewidth=0)
    dense = 1000 * np.array(recording.dense_seconds)
    label = f"dense {recording.dense_milliseconds:.0f}"
    axes.plot(frames, dense, color=_INK, linewidth=1.2, label=label)
    axes.set_ylabel("milliseconds per frame")
    axes.set_ylim(0, 1.05 * max(dense.max(), times.sum(axis=0).max()))
    figure.legend(loc="outside upper left", ncols=3, handlelength=1.1)
    return _svg(figure, "Milliseconds of each stage by frame")


@matplotlib.rc_context(_STYLE)
def plot_agreement(recording):
    """str: SVG of the agreement with the dense output by frame."""
    values = np.array(recording.main.agreement, dtype=float)
    figure, axes = _figure("time_agreement", recording)
    axes.plot(values, color=_SERIES[1], linewidth=0.9, alpha=0.5, marker=".", markersize=3)
    axes.plot(_smooth(values), color=_SERIES[1], label=f"mean of {_WINDOW} frames")
    axes.set_ylabel(f"{recording.metrics[0]} against dense (%)")
    axes.set_ylim(0, 104)
    axes.legend(loc="lower right")
    return _svg(figure, "Agreement with the dense output by frame")


@matplotlib.rc_context(_STYLE)
def plot_age(recording):
    """str: SVG of the age of the blocks by frame."""
    median, oldest = np.array(recording.main.age).T
    figure, axes = _figure("time_age", recording)
    wide = {"linewidth": 4, "alpha": 0.45}  # seen where both are the same
    axes.plot(oldest, color=_SERIES[3], label="oldest block", drawstyle="steps-mid", **wide)
    axes.plot(median, color=_SERIES[0], label="median", drawstyle="steps-mid")
    axes.set_ylabel("frames since executed")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.legend(loc="upper left")
    return _svg(figure, "Frames since the blocks were last executed")


@matplotlib.rc_context(_STYLE)
def plot_sweep(recording, points, recommended, margin):
    """
    Args:
        recording (Recording):
        points (list[Point]):
        recommended (Point or None):
        margin (float): points of agreement below dense that the recommendation allows.

    Returns:
        str: SVG of agreement against milliseconds, one point for every target.
    """
    metric = recording.metrics[0]
    shown = [point for point in points if not math.isnan(point.scores[metric])]
    figure, axes = _figure("sweep", None, size=(6.4, 3.4))
    dense = recording.dense_milliseconds
    axes.axvline(dense, color=_INK, linestyle=":", linewidth=1.1)
    axes.axhspan(100 - margin, 100, color=_SERIES[2], alpha=0.13, linewidth=0)
    times = [point.milliseconds for point in shown]
    scores = [point.scores[metric] for point in shown]
    axes.plot(times, scores, color=_SERIES[0], marker="o", markersize=6)
    for index, point in enumerate(shown):
        name = "" if point.target is None else f"τ {point.target:g}"
        # Alternately above and below, since neighbours may be close.
        place = (point.milliseconds, point.scores[metric])
        beside = dict(xytext=(0, 8 if index % 2 else -17), textcoords="offset points")
        axes.annotate(name, place, ha="center", **beside)
        if point is recommended:
            ring = dict(markerfacecolor="none", markeredgecolor=_SERIES[1], markeredgewidth=1.8)
            ring |= dict(marker="o", markersize=13, linestyle="none", label="recommended")
            axes.plot(*place, **ring)
    axes.plot(dense, 100, color=_INK, marker="D", markersize=6, linestyle="none", label="dense")
    axes.set_xlabel("milliseconds per frame")
    axes.set_ylabel(f"{metric} against dense (%)")
    axes.set_xlim(0, 1.08 * max([dense, *times]))
    lowest = min([100 - margin, *scores])
    axes.set_ylim(max(0, 5 * math.floor((lowest - 3) / 5)), 102)
    # Room above dense, but no agreement beyond it.
    bottom, _ = axes.get_ylim()
    axes.set_yticks([tick for tick in axes.get_yticks() if bottom <= tick <= 100])
    axes.legend(loc="lower left", handletextpad=0.4)
    return _svg(figure, "Agreement with the dense output against time per frame, by target")


def _figure(name, recording, size=(5.2, 2.7)):
    """
    Args:
        name (str): prefix that keeps the definitions of a page's plots apart.
        recording (Recording or None): for a plot over its frames.
    """
    figure = Figure(figsize=size, layout="constrained")
    figure.set_label(name)
    axes = figure.subplots()
    axes.tick_params(length=0)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=recording is not None))
    if recording is not None:
        axes.set_xlabel("frame")
        axes.set_xlim(-0.5, max(recording.frames - 0.5, 0.5))
        for cut in recording.main.cuts:
            axes.axvline(cut, color=_RULE, linewidth=1.4, zorder=0)
    return figure, axes


def _svg(figure, title):
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": figure.get_label()}):
        figure.savefig(buffer, format="svg", transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, variable)
    return svg


def _smooth(values):
    """Centred means of the existing values."""
    half = _WINDOW // 2
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return np.array([mean([math.nan, *window]) for window in windows])
