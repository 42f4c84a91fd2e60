"""A run as a table and two plots, and their place in README.md."""

from pathlib import Path

from tabulate import tabulate

from .plots import TITLES, plot_trade_off

__all__ = ["embed_report", "markdown_table", "write_report"]

_BEGIN, _END = "<!-- results: begin -->", "<!-- results: end -->"

# File, key of the cost in a row, label of the axis.
_PLOTS = (
    ("ap_gmacs.png", "gmacs", "GMACs per frame"),
    ("ap_ms.png", "ms_median", "ms per frame (median)"),
)

# Key in a row, title, format.
_COLUMNS = (
    ("target", "tau", "g"),
    ("executed_fraction", "executed", ".3f"),
    ("AP", "AP", ".1f"),
    ("AP50", "AP50", ".1f"),
    ("gmacs", "GMACs", ".1f"),
    ("ms_median", "ms, median", ".1f"),
    ("ms_mean", "ms, mean", ".1f"),
    ("gain_share", "gain share", ".3f"),
)


def markdown_table(results):
    """
    Args:
        results (dict): of results.json.

    Returns:
        str: a row per method. What was not measured is "-".
    """
    rows = [
        [TITLES[row["method"]], *(_format(row.get(key), spec) for key, _, spec in _COLUMNS)]
        for row in results["rows"]
    ]
    return tabulate(
        rows,
        headers=["method", *(title for _, title, _ in _COLUMNS)],
        tablefmt="pipe",
        colalign=["left"] + ["right"] * len(_COLUMNS),
        disable_numparse=True,
    )


def write_report(results, folder):
    """
    Write results.md and the plots.

    Args:
        results (dict): of results.json.
        folder (str or Path): where to, made if need be.
    """
    folder = Path(folder)
    _plot(results, folder)
    (folder / "results.md").write_text(f"{markdown_table(results)}\n\n{_provenance(results)}\n")


def embed_report(results, readme):
    """
    Replace what stands between the two markers of a README by the table and the plots, which go to
    figures/ beside it.

    Args:
        results (dict): of results.json.
        readme (str or Path):

    Raises:
        ValueError: the README has no markers, or the run was killed before it was scored.
    """
    readme = Path(readme)
    text = readme.read_text()
    if text.count(_BEGIN) != 1 or text.count(_END) != 1:
        raise ValueError(f"{readme} needs the lines {_BEGIN} and {_END} once each.")
    if all(row["AP"] is None for row in results["rows"]):
        raise ValueError("No method has an AP: the run was killed before its end, when it scores.")
    before, rest = text.split(_BEGIN)
    after = rest.split(_END)[1]
    figures = readme.parent / "figures"
    _plot(results, figures)
    plots = "\n".join(f"![AP against {label}]({figures.name}/{name})" for name, _, label in _PLOTS)
    block = f"{_provenance(results)}\n\n{markdown_table(results)}\n\n{plots}"
    readme.write_text(f"{before}{_BEGIN}\n{block}\n{_END}{after}")


def _plot(results, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, cost, label in _PLOTS:
        plot_trade_off(results, cost, label, folder / name)


def _provenance(results):
    machine, versions = results["machine"], results["versions"]
    device = f"{machine['processor']}, {machine['threads']} threads"
    if machine["device"] != "cpu":
        device = f"{machine['device']} ({device})"
    ended = "" if results["complete"] else " The run was ended early."
    return (
        f"{results['clips']} clips ({results['frames']} frames) of {results['dataset']},"
        f" `{results['config_file']}`, policies warmed on {results['warm_clips']} clips of"
        f" {results['train_dataset']} per target. {device}, torch {versions['torch']},"
        f" {results['date'][:10]}.{ended}"
    )


def _format(value, spec):
    return "-" if value is None else format(value, spec)
