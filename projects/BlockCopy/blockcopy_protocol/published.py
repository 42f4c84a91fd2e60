"""Figures that the paper, and the methods it compares with, have for a data set."""

import json
from pathlib import Path

from tabulate import tabulate

__all__ = ["PUBLISHED", "published_points", "published_table"]

PUBLISHED = Path(__file__).with_name("published.json")

_TITLES = {
    "gmacs": "GMACs",
    "gpu": "GPU",
    "source_seconds": "s/frame there",
    "factor_from": "factor of",
    "seconds": "s/frame",
    "test": "test set",
}
# Key of a cost in results.json -> key and unit in published.json.
_COSTS = {"gmacs": ("gmacs", 1), "ms_median": ("seconds", 1000)}


def published_points(dataset, metric, cost):
    """
    Args:
        dataset (str): the key "dataset" of results.json.
        metric, cost (str): keys in a row of results.json.

    Returns:
        list[tuple[float, float, str]]: cost, accuracy and name of every method that has both. Times
        are those on a GTX 1080 Ti, or scaled to one by the factor of the row. A figure that is in
        the column of another metric than its own, as "settings" says, counts for its own.
    """
    key, unit = _COSTS[cost]
    settings, found = _read().get(dataset, {}).get("settings", {}), []
    for row in _rows(dataset):
        own = settings.get(row["method"], {})
        figures = {own.get(column, column): figure for column, figure in row.items()}
        found.append((row.get(key), figures.get(metric), row["method"]))
    return [(unit * x, y, name) for x, y, name in found if None not in (x, y)]


def published_table(results):
    """
    Args:
        results (dict): content of results.json.

    Returns:
        str: the paper's rows for the data set, its own and those of other methods; empty if there
        are none.
    """
    rows = _rows(results["dataset"])
    if not rows:
        return ""
    keys = list(rows[0])
    cells = [["-" if row[key] is None else str(row[key]) for key in keys] for row in rows]
    headers = [_TITLES.get(key, key) for key in keys]
    align = ["left", "left"] + ["right"] * (len(keys) - 2)
    table = tabulate(cells, headers, tablefmt="pipe", colalign=align, disable_numparse=True)
    return f"As published ({_read()[results['dataset']]['source']}):\n\n{table}"


def _rows(dataset):
    return _read().get(dataset, {"rows": []})["rows"]


def _read():
    return json.loads(PUBLISHED.read_text())
