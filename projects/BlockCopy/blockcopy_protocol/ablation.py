"""Shows a run whose policies differ in inputs, depth or learning, as Table 2 of the paper does."""

import json
from pathlib import Path

from matplotlib.figure import Figure
from tabulate import tabulate

from blockcopy_d2.atomic import atomic_write

from .plots import extent_of, spread_of
from .variants import TABLE_2

__all__ = ["PUBLISHED", "ablation_table", "is_ablation", "plot_ablation"]

PUBLISHED = Path(__file__).with_name("published_table_2.json")

# Colours of Okabe and Ito, for targets.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_OTHER = "#666666"


def is_ablation(results):
    """
    Args:
        results (dict): content of results.json.

    Returns:
        bool: whether its rows are those of Table 2.
    """
    return any("variant" in row for row in results["rows"])


def ablation_table(results):
    """
    Args:
        results (dict): content of results.json.

    Returns:
        str: the dense network and a row per policy: what it sees, its network, when it learns,
        scores and gain share with their spread over seeds, the difference to dense in the first
        score, GMACs of the policy alone; the paper's figures beside them where it has any for the
        data set, with a line on their source.
    """
    metrics, published = results["metrics"], _published(results)
    dense = next((row for row in results["rows"] if row["method"] == "dense"), {})
    titles = ["the policy sees", "network", "learns", "tau", "executed", *metrics]
    titles += [f"{metric} to dense" for metric in metrics[:1]] + ["GMACs, policy", "gain share"]
    if published:
        titles += ["GMACs, policy (paper)", f"{published['metric']} (paper)"]
    cells = []
    for row in _in_order(results):
        variant, policy = row.get("variant"), row.get("gmacs_per_stage", {}).get("policy")
        if variant is None:
            line = ["(dense)", "-", "-", "-"]
        else:
            learns = "online" if variant["online"] else "offline"
            line = [_seen(variant), f"ResNet-{variant['depth']}", learns, f"{row['target']:g}"]
        line.append(_number(row, "executed_fraction", ".3f"))
        line += [_number(row, metric, ".1f", spread=True) for metric in metrics]
        for metric in metrics[:1]:
            known = variant is not None and None not in (row.get(metric), dense.get(metric))
            line.append(f"{row[metric] - dense[metric]:+.1f}" if known else "-")
        line.append(f"{policy:.2f}" if policy else "-")
        line.append(_number(row, "gain_share", ".3f", spread=variant is not None))
        if published:
            quoted = published["rows"].get(row["method"], {})
            line += [_number(quoted, key, ".1f") for key in ("gmacs", published["metric"])]
        cells.append(line)
    align = ["left"] * 3 + ["right"] * (len(titles) - 3)
    table = tabulate(cells, titles, tablefmt="pipe", colalign=align, disable_numparse=True)
    return f"{table}\n\nPaper: {published['source']}." if published else table


def plot_ablation(results, metric, path):
    """
    Draw accuracy and gain share of every policy: mean and standard deviation over seeds, and each
    of them as a small dot. The paper's figures are open circles.

    Args:
        results (dict): content of results.json.
        metric (str): the key of the accuracy in a row, such as "AP".
        path (str or Path): path of the PNG file.
    """
    rows = [row for row in _in_order(results) if "variant" in row]
    labels = list(dict.fromkeys(map(_label, rows)))
    targets = sorted({row["target"] for row in rows})
    figure = Figure(figsize=(8.6, 1.4 + 0.42 * len(labels)), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, key, title in zip(panels, (metric, "gain_share"), (metric, "gain share")):
        for number, target in enumerate(targets):
            color = _COLORS[number % len(_COLORS)]
            shift = 0.16 * (number - (len(targets) - 1) / 2)
            found = [r for r in rows if r["target"] == target and r.get(key) is not None]
            for row in found:
                place, runs = labels.index(_label(row)) + shift, row.get("seeds", ())
                values = [run[key] for run in runs if run.get(key) is not None]
                axes.plot(values, [place] * len(values), ".", color=color, alpha=0.4, zorder=2)
            if found:
                places = [labels.index(_label(row)) + shift for row in found]
                spreads = [spread_of(row, key) or 0 for row in found]
                style = {"fmt": "o", "color": color, "capsize": 3, "zorder": 3}
                style["label"] = f"$\\tau$ = {target:g}"
                axes.errorbar([row[key] for row in found], places, xerr=spreads, **style)
        dense = [row.get(key) for row in results["rows"] if row["method"] == "dense"]
        if key == metric and dense and dense[0] is not None:
            axes.axvline(dense[0], color="#000000", linestyle=":", linewidth=1, label="dense")
        axes.set_xlabel(title)
        axes.grid(color="#E3E3E3", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    quoted = _published(results).get("rows", {}) if metric in _published(results).values() else {}
    points = {_label(r): quoted[r["method"]][metric] for r in rows if r["method"] in quoted}
    if points:
        style = {"color": _OTHER, "fillstyle": "none", "linestyle": "none", "marker": "o"}
        places = [labels.index(label) for label in points]
        panels[0].plot(list(points.values()), places, label="paper", **style)
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    handles, names = panels[0].get_legend_handles_labels()
    options = {"frameon": False, "loc": "outside upper right", "ncols": max(1, len(names))}
    figure.legend(handles, names, **options)
    panels[0].set_title(f"{results['dataset']}, {extent_of(results)}", fontsize=10, loc="left")
    with atomic_write(path) as temporary:
        figure.savefig(temporary)


def _in_order(results):
    """list[dict]: the rows, those of each target in the order of the paper's table."""
    order = {name: index for index, name in enumerate(TABLE_2)}
    place = lambda row: (row["target"] or 0, order.get(row["method"], -1))  # noqa: E731
    return sorted(results["rows"], key=place)


def _published(results):
    """dict: content of PUBLISHED if it is of the data set; else empty."""
    published = json.loads(PUBLISHED.read_text())
    return published if results["dataset"] == published["dataset"] else {}


def _seen(variant):
    return ", ".join(name.replace("_", " ") for name in variant["inputs"])


def _label(row):
    """str: a policy in words, by its difference from the one of the paper."""
    variant = row["variant"]
    parts = [_seen(variant)]
    if variant["depth"] != 8:
        parts.append(f"ResNet-{variant['depth']}")
    if not variant["online"]:
        parts.append("offline")
    return "; ".join(parts)


def _number(row, key, spec, *, spread=False):
    """str: a value, with its spread over seeds if there is one; "-" if there is none."""
    if row.get(key) is None:
        return "-"
    deviation = spread_of(row, key) if spread else None
    return f"{row[key]:{spec}}" + ("" if deviation is None else f" ± {deviation:{spec}}")
