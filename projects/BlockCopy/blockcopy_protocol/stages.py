"""
The time of a frame by stage, and its operations: Table 3 of the paper.

There, blocks are gathered, padded and copied, which "sparse conv overhead" and "feature transfer"
count. Here they run in place. Compare instead the time of all blocks (dense) with that of
Detectron2's own network (stock). Listing the executed blocks is overhead, too, and so is moving
features, if they move.
"""

from matplotlib.figure import Figure
from tabulate import tabulate

from blockcopy_d2.atomic import atomic_write
from blockcopy_d2.kernels import triton_runs_on
from blockcopy_d2.modeling import StageTimer
from blockcopy_d2.sparse import BlockGrid

from .plots import title_of

__all__ = ["plot_stages", "seconds_of_block_lists", "stage_table"]

# Title of a column, and the stages that it sums.
_COLUMNS = {
    "loading": ("loading",),
    "prepare, remember": ("preprocess", "observe"),
    "motion": ("motion",),
    "moving features": ("move_caches",),
    "task network": ("stock", "network"),
    "heads": ("heads",),
    "policy network": ("policy",),
    "inform. gain": ("information_gain",),
    "backward, update": ("policy_update",),
}
# Colours of Okabe and Ito.
_COLORS = (
    *("#000000", "#999999", "#56B4E9", "#882255", "#0072B2"),
    *("#009E73", "#D55E00", "#E69F00", "#CC79A7"),
)


def seconds_of_block_lists(result):
    """
    Args:
        result (FrameResult):

    Returns:
        float: seconds of listing the executed blocks of a frame once more: one list on a GPU, the
        rows of their pixels at every stride on a CPU (not the windows of convolutions). The frame
        itself did so within the stage "network"; on a GPU in its graph, without the launch that
        counts here.
    """
    active, device = result.grid.active, result.grid.active.device
    layout = {"block_size": result.grid.block_size, "image_size": result.grid.image_size}
    strides = {
        value.stride for program in result.work.programs for value in program.values.values()
    }
    timer, grid = StageTimer(device), BlockGrid(active, **layout)
    with timer.stage("lists"):
        if triton_runs_on(device):
            grid.block_list(1)
        else:
            for stride in strides - {None}:
                grid.at_stride(stride).tile_rows(outside="write")
    return timer.seconds()["lists"]


def stage_table(results):
    """
    Args:
        results (dict): content of results.json.

    Returns:
        str: executed share, milliseconds of each stage, means over the frames, and GMACs of task
        and policy; below, the time that blocks cost when all of them run, if stock Detectron2 ran,
        too.
    """
    rows, measured = [], list(_measured(results))
    spec = ".1f" if max((row["ms_mean"] for row in measured), default=0) >= 100 else ".2f"
    for row in measured:
        stages, macs = _milliseconds(row), row.get("gmacs_per_stage", {})
        task = macs.get("network", 0) + macs.get("heads", 0)
        rows.append(
            [
                _title(row),
                _format(row.get("executed_fraction"), ".3f"),
                f"{row['ms_mean']:{spec}}",
                *(_format(value, spec) for value in stages.values()),
                _format(row.get("ms_block_lists"), ".2f"),
                f"{task:.1f}" if macs else "-",
                f"{macs['policy']:.1f}" if macs.get("policy") else "-",
            ]
        )
    headers = ["method", "executed", "ms", *_COLUMNS, "block lists", "GMACs, task", "GMACs, policy"]
    align = ["left"] + ["right"] * (len(headers) - 1)
    table = tabulate(rows, headers, tablefmt="pipe", colalign=align, disable_numparse=True)
    return "\n".join([table, *_cost_of_blocks(results)])


def _cost_of_blocks(results):
    """Yields a paragraph on all blocks against Detectron2's own network, if both ran."""
    ms = {row["method"]: row["ms_mean"] for row in _measured(results) if row["target"] is None}
    if {"dense", "stock"} <= ms.keys():
        yield (
            f"\nAll blocks ({title_of('dense')}) against {title_of('stock')}:"
            f" {ms['dense']:.2f} ms against {ms['stock']:.2f}, {ms['dense'] - ms['stock']:+.2f}."
            " Block lists are a part of the task network."
        )


def plot_stages(results, path):
    """
    Draw the milliseconds of each stage as bars.

    Args:
        results (dict): content of results.json.
        path (str or Path): path of the PNG file.
    """
    rows = list(_measured(results))[::-1]
    figure = Figure(figsize=(6.4, 1 + 0.32 * len(rows)), dpi=150, layout="constrained")
    axes, ends = figure.subplots(), [0.0] * len(rows)
    for (title, _), color in zip(_COLUMNS.items(), _COLORS, strict=True):
        widths = [_milliseconds(row)[title] or 0.0 for row in rows]
        if any(widths):
            axes.barh(range(len(rows)), widths, left=ends, color=color, label=title)
            ends = [end + width for end, width in zip(ends, widths)]
    axes.set_yticks(range(len(rows)), [_title(row) for row in rows])
    axes.set_xlabel("ms per frame")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=7, ncols=4, loc="outside upper center")
    with atomic_write(path) as temporary:
        figure.savefig(temporary)


def _measured(results):
    """Rows that were timed by stage, which those of older versions were not."""
    return [row for row in results["rows"] if row.get("ms_per_stage")]


def _milliseconds(row):
    """dict[str, float or None]: by column; None if the method has no such stage."""
    found = {}
    for title, stages in _COLUMNS.items():
        values = [row["ms_per_stage"][stage] for stage in stages if stage in row["ms_per_stage"]]
        found[title] = sum(values) if values else None
    return found


def _format(value, spec):
    return "-" if value is None else format(value, spec)


def _title(row):
    title = title_of(row["method"])
    return title if row["target"] is None else f"{title}, tau {row['target']:g}"
