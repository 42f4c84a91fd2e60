"""Renders a recording in words, tables and pictures, as one HTML file."""

import base64
import json
import math
from importlib import resources

import jinja2
import numpy as np

from . import plots
from .clip import HEAT_COLORS, heat_map, to_jpeg
from .recording import mean
from .sweep import break_even, recommend, sweep_points

__all__ = ["is_plain", "mac_table", "render_page"]

# Policies within so many points of agreement count as equal.
_PLAIN_MARGIN = 0.5


def render_page(recording, *, title, environment, clip=None, poster=None, clip_frames=0, margin=5):
    """
    Args:
        recording (Recording):
        title (str): title of the page.
        environment (dict[str, str]): rows of the table about the measurement.
        clip (bytes or None): an H.264 video, both results side by side.
        poster (ndarray or None): uint8, BGR; shown until the clip plays.
        clip_frames (int): frames that the clip shows.
        margin (float): points of agreement that the recommended target may lose.

    Returns:
        str: HTML without references to other files.
    """
    points = sweep_points(recording)
    metric = recording.metrics[0]
    recommended, is_within = recommend(points, metric, margin)
    difference = recording.difference and recording.difference.scores[metric]
    side = recording.block_size / recording.scale
    heat = heat_map(recording.last_frame, recording.main.block_share, side)
    template = _environment().from_string(
        resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    )
    return template.render(
        title=title,
        recording=recording,
        run=recording.main,
        scores=recording.main.scores,
        metric=metric,
        is_measured=not math.isnan(recording.main.scores[metric]),
        points=points,
        recommended=recommended,
        is_within=is_within,
        margin=margin,
        difference=difference,
        is_plain=is_plain(recording),
        break_even=break_even(recording),
        macs=mac_table(recording),
        environment=environment,
        clip=clip and _data_uri(clip, "video/mp4"),
        poster=None if poster is None else _data_uri(to_jpeg(poster), "image/jpeg"),
        clip_frames=clip_frames,
        heat=_data_uri(to_jpeg(heat), "image/jpeg"),
        heat_gradient=_gradient(),
        heat_range=_heat_range(recording.main.block_share),
        plots={
            "executed": plots.plot_executed(recording),
            "stages": plots.plot_stages(recording),
            "agreement": plots.plot_agreement(recording),
            "age": plots.plot_age(recording),
            "sweep": plots.plot_sweep(recording, points, recommended, margin),
        },
        data=_json(_data(recording, points, recommended)),
    )


def is_plain(recording):
    """
    Args:
        recording (Recording): with a run of plain differences.

    Returns:
        bool: whether plain differences agree with dense about as well as the policy does.
    """
    if recording.difference is None:
        return False
    metric = recording.metrics[0]
    loss = recording.main.scores[metric] - recording.difference.scores[metric]
    return loss <= _PLAIN_MARGIN


def _environment():
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["number"] = _number
    environment.filters["percent"] = lambda x: f"{_number(100 * x, 1)} %"
    return environment


def _number(value, digits=0):
    """Formats a number; an en dash for a missing one."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.{digits}f}"


def _data_uri(data, kind):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _gradient():
    stops = (HEAT_COLORS(x, bytes=True)[:3] for x in np.linspace(0, 1, 9))
    return ", ".join("rgb({} {} {})".format(*stop) for stop in stops)


def _heat_range(share):
    return f"{100 * share.min():.0f}", f"{100 * share.max():.0f}"


def mac_table(recording):
    """
    Args:
        recording (Recording):

    Returns:
        list[tuple[str, float, float]]: stage, dense and executed GMACs per frame, the sum last.
    """
    rows = []
    for name, dense in recording.dense_macs.items():
        executed = mean(recording.main.macs[name]) / 1e9
        rows.append((name, mean(dense) / 1e9, executed))
    rows = [row for row in rows if any(row[1:])]
    return [*rows, ("all", *(math.fsum(row[i] for row in rows) for i in (1, 2)))]


def _data(recording, points, recommended):
    """Returns the data of the page, for programs."""
    run = recording.main
    return {
        "frames": recording.frames,
        "speed_up": recording.speed_up,
        "executed": recording.executed,
        "dense_milliseconds": recording.dense_milliseconds,
        "milliseconds": recording.milliseconds,
        "scores": run.scores,
        "difference_scores": recording.difference and recording.difference.scores,
        "recommended": None if recommended is None else recommended.target,
        "sweep": [vars(point) for point in points],
        "gmacs": {name: {"dense": d, "executed": e} for name, d, e in mac_table(recording)},
        "by_frame": {
            "dense_seconds": recording.dense_seconds,
            "seconds": run.seconds,
            "stages": run.stages,
            "executed": run.executed,
            "agreement": run.agreement,
            "age_median": [median for median, _ in run.age],
            "age_max": [oldest for _, oldest in run.age],
            "cuts": run.cuts,
        },
    }


def _json(data):
    """Returns JSON that may stand in a script element, with null for NaN and infinity."""
    if isinstance(data, dict):
        return "{" + ",".join(f"{_json(str(k))}:{_json(v)}" for k, v in data.items()) + "}"
    if isinstance(data, list):
        return "[" + ",".join(map(_json, data)) + "]"
    if isinstance(data, float):
        data = round(data, 6) if math.isfinite(data) else None
    return json.dumps(data).replace("<", "\\u003c")
