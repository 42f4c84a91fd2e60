"""Plots of results: time against executed share, with the ideal line."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from blockcopy_d2.atomic import atomic_write  # noqa: E402

__all__ = ["plot_shares", "plot_streams"]


def plot_shares(path, medians, dense, *, title):
    """
    Args:
        path (Path): path of the PNG.
        medians (dict[str, float]): milliseconds by executed share.
        dense (dict[str, float]): milliseconds of dense networks by their names, which the legend
            has.
        title (str):
    """
    shares = sorted(map(float, medians))
    figure, axes = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    axes.plot(shares, [medians[str(s)] for s in shares], "o-", label="BlockCopy, with policy")
    best = min(dense, key=dense.get)
    for name, ms in dense.items():
        color = "black" if name == best else "gray"
        axes.axhline(ms, color=color, linestyle="--", label=name)
    label = "best dense time x share"
    axes.plot([0, 1], [0, dense[best]], color="gray", linestyle=":", label=label)
    axes.set(xlabel="executed share", ylabel="ms per frame", title=title, xlim=(0, 1.02))
    axes.set_ylim(bottom=0)
    axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)


def plot_streams(path, results, *, title):
    """
    Args:
        path (Path): path of the PNG.
        results (dict): from :func:`benchmarks.streams.merged`.
        title (str):
    """
    lines = {}
    for number, of_number in results["blockcopy"].items():
        for share, times in of_number.items():
            label = "BlockCopy, its policy" if share == "policy" else f"BlockCopy, {share} executed"
            lines.setdefault(label, {})[int(number)] = times["frame_ms"]
    dense = results.get("best_dense", {})
    if dense:
        lines["best dense"] = {int(number): times["frame_ms"] for number, times in dense.items()}
    figure, axes = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    for label, points in lines.items():
        style = "k--o" if label == "best dense" else "o-"
        axes.plot(sorted(points), [points[n] for n in sorted(points)], style, label=label)
    numbers = sorted({number for points in lines.values() for number in points})
    axes.set(xlabel="streams in one graph", ylabel="ms per frame", title=title, xscale="log")
    axes.set_xticks(numbers, numbers)
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=2)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)
