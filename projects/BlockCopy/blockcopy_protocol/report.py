"""Shows a run as a table and plots, also in README.md."""

import math
from pathlib import Path

from tabulate import tabulate

from blockcopy_d2.atomic import atomic_write

from .ablation import ablation_table, is_ablation, plot_ablation
from .course import plot_course
from .plots import extent_of, plot_trade_off, quantity, spread_of, title_of
from .published import published_table
from .stages import plot_stages, stage_table

__all__ = ["embed_report", "markdown_table", "write_report"]

# Short name, key of the cost in a row, label of the axis. Those of times are left out of runs that
# shared the machine.
_PLOTS = (
    ("gmacs", "gmacs", "GMACs per frame"),
    ("ms", "ms_median", "ms per frame (median; mean where frames are skipped)"),
)

# Key in a row, title, format: before the metrics and after them.
_CHOICE = (
    ("target", "tau", "g"),
    ("executed_fraction", "executed", ".3f"),
)
_COST = (
    ("gmacs", "GMACs", ".1f"),
    ("ms_median", "ms, median", ".2f"),
    ("ms_mean", "ms, mean", ".2f"),
    ("gain_share", "gain share", ".3f"),
)


def markdown_table(results):
    """
    Args:
        results (dict): content of results.json.

    Returns:
        str: a row per method, scores with their spread over seeds or targets. "-" stands for values
        that were not measured. An ablation has the table of :func:`ablation_table`.
    """
    if is_ablation(results):
        return ablation_table(results)
    columns = (*_CHOICE, *((metric, metric, ".1f") for metric in results["metrics"]), *_COST)
    columns = [column for column in columns if _timed(results) or "ms" not in column[0]]
    rows = [
        [title_of(row["method"]), *(_format(row.get(key), spec) for key, _, spec in columns)]
        for row in results["rows"]
    ]
    for cells, row in zip(rows, results["rows"]):
        for index, (metric, _, spec) in enumerate(columns, start=1):
            if metric in results["metrics"] and row.get(metric) is not None:
                spread = spread_of(row, metric)
                cells[index] += "" if spread is None else f" ± {spread:{spec}}"
    return tabulate(
        rows,
        headers=["method", *(title for _, title, _ in columns)],
        tablefmt="pipe",
        colalign=["left"] + ["right"] * len(columns),
        disable_numparse=True,
    )


def write_report(results, folder):
    """
    Write results.md and the plots. results.md has the scores, the stages of a frame, and published
    results for the data set.

    Args:
        results (dict): content of results.json.
        folder (str or Path): folder of the files, created if missing.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for metric in results["metrics"]:
        # AP50 goes with AP.
        if metric != "AP50":
            _plot(results, metric, folder)
    if not is_ablation(results):
        plot_course(results, folder / "course.png")
    parts = [markdown_table(results)]
    if _timed(results):
        plot_stages(results, folder / "stages.png")
        parts.append(stage_table(results))
    parts.append(_provenance(results))
    if not is_ablation(results):
        parts.append(published_table(results))
    with atomic_write(folder / "results.md") as temporary:
        Path(temporary).write_text("\n\n".join(filter(None, parts)) + "\n")


def embed_report(results, readme, section="", *, stages=False):
    """
    Replace the text between two markers of a README by the table and the plots, which go to
    figures/ beside it. The course is among them if it begins with the first update.

    Args:
        results (dict): content of results.json.
        readme (str or Path):
        section (str): names the markers and the plots, in a README that shows several runs.
        stages (bool): show the stages of a frame in place of the scores.

    Raises:
        ValueError: the README has no markers, the run was killed before it was scored, or its times
            are to be shown although it shared the machine.
    """
    readme = Path(readme)
    text = readme.read_text()
    name = f"{section} results".strip()
    begin, end = (f"<!-- {name}: {word} -->" for word in ("begin", "end"))
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{readme} needs the lines {begin} and {end} once each.")
    if not results["metrics"]:
        raise ValueError("No method has a score: the run was killed before its end.")
    if stages and not _timed(results):
        raise ValueError("The run was --untimed: it has no times of stages to show.")
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    figures = readme.parent / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    prefix = f"{section}_" if section else ""
    if stages:
        table, plots = stage_table(results), [(f"{prefix}stages.png", "ms per stage")]
        plot_stages(results, figures / plots[0][0])
    else:
        table = markdown_table(results)
        plots = _plot(results, results["metrics"][0], figures, prefix=prefix)
        learned = [row for row in results["rows"] if row["method"] == "blockcopy"]
        if learned and all(row.get("warm_course") for row in learned):
            plots.append((f"{prefix}course.png", "Gain share and executed share over the updates"))
            plot_course(results, figures / plots[-1][0])
    images = "\n".join(f"![{title}]({figures.name}/{file})" for file, title in plots)
    block = f"{_provenance(results)}\n\n{table}\n\n{images}"
    with atomic_write(readme) as temporary:
        Path(temporary).write_text(f"{before}{begin}\n{block}\n{end}{after}")


def _plot(results, metric, folder, prefix=""):
    """
    Returns:
        list[tuple[str, str]]: file and title of every plot.
    """
    if is_ablation(results):
        file = f"{prefix}{metric.lower()}_ablation.png"
        plot_ablation(results, metric, folder / file)
        return [(file, f"{metric} and gain share of every policy")]
    plots = []
    for name, cost, label in _PLOTS:
        if cost == "ms_median" and not _timed(results):
            continue
        file = f"{prefix}{metric.lower()}_{name}.png"
        plot_trade_off(results, metric, cost, label, folder / file)
        plots.append((file, f"{metric} against {label}"))
    return plots


def _timed(results):
    """Results of older versions were all timed."""
    return results.get("timed", True)


def _provenance(results):
    ended = "" if results["complete"] else " The run was ended early."
    # Results of older versions do not name the policy: it was the paper's.
    policy = f" ({results['policy']})" if "policy" in results else ""
    text = (
        f"{extent_of(results)} ({results['frames']} frames) of"
        f" {results['dataset']}, `{results['config_file']}`, policies{policy} warmed on"
        f" {_warming(results)} per target.{_runs(results)} {_origin(results)}.{ended}"
    )
    times = results.get("times")
    if times is not None:
        text += (
            " Times: another run, which had its device to itself, of"
            f" {extent_of(times)} ({times['frames']} frames), {_origin(times)}"
        )
        if _warming(times) != _warming(results):
            text += f", policies warmed on {_warming(times)}"
        text += "."
    return text


def _warming(run):
    passes = run["warm_passes"]
    often = f", {passes} times over," if passes > 1 else ""
    return f"{quantity(run['warm_clips'], 'clip')} of {run['train_dataset']}{often}"


def _origin(run):
    """Returns machine, date and revision."""
    machine, versions = run["machine"], run["versions"]
    device = f"{machine['processor']}, {machine['threads']} threads"
    if machine["device"] != "cpu":
        device = f"{machine['device']} ({device})"
    revision = f", revision {run['revision']}" if run.get("revision") else ""
    return f"{device}, torch {versions['torch']}, {run['date'][:10]}{revision}"


def _runs(results):
    """Returns a sentence on the runs behind each row, if there are several."""
    parts = []
    distances = [
        abs(run["target"] / row["target"] - 1)
        for row in results["rows"]
        for run in row.get("targets", ())
    ]
    near = math.ceil(100 * max(distances, default=0) - 1e-6)
    for key, text in (
        ("seeds", "seeds"),
        ("targets", f"targets within {near} % of tau where nothing is drawn"),
    ):
        numbers = sorted({len(row[key]) for row in results["rows"] if row.get(key)})
        if numbers:
            parts.append(f"{' or '.join(map(str, numbers))} {text}")
    return f" Mean and standard deviation of {', and of '.join(parts)}." if parts else ""


def _format(value, spec):
    return "-" if value is None else format(value, spec)
