"""The report of a run: ``blockcopy_summary.json`` and a table for the log."""

import json
import math
import os
from dataclasses import dataclass, field

from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from tabulate import tabulate

from blockcopy_d2.atomic import atomic_write

from .efficiency import EfficiencyMeter
from .gain_share import GainShare

__all__ = ["RunRecord", "headline", "remove_summary", "summarize", "summary_table", "write_summary"]


@dataclass
class RunRecord:
    """
    Measurements of a run, on one rank or, merged, on all.

    Attributes:
        meters (dict[str, EfficiencyMeter]): by model: "blockcopy", and "dense" and "stock" where
            they ran beside it.
        executed (list[float]): executed fraction of every frame but the first ones of clips.
        clips (int): clips started.
        failures (list[str]): why clips ended early.
        interruptions (list[str]): why the run itself ended early, a line per process.
        gain_share (GainShare):
    """

    meters: dict = field(default_factory=dict)
    executed: list = field(default_factory=list)
    clips: int = 0
    failures: list = field(default_factory=list)
    interruptions: list = field(default_factory=list)
    gain_share: GainShare = field(default_factory=GainShare)

    def meter(self, name):
        return self.meters.setdefault(name, EfficiencyMeter())

    def merge(self, other):
        """Add the measurements of another rank."""
        for name, meter in other.meters.items():
            self.meter(name).merge(meter)
        self.executed += other.executed
        self.clips += other.clips
        self.failures += other.failures
        self.interruptions += other.interruptions
        self.gain_share.merge(other.gain_share)


def summarize(record, *, scores, target, unscored=None):
    """
    Args:
        record (RunRecord): with at least one frame.
        scores (dict[str, dict]): by model, {task: {metric: value}} from the evaluators.
        target (float): tau.
        unscored (dict[str, str] or None): by model, why it has no score.

    Returns:
        dict: for JSON. "dense", "blockcopy" and "stock" hold AP, AP50 (mIoU for semantic
        segmentation), gmacs and seconds_per_frame, "stock" only the last; None for a model that
        did not run. "executed_fraction" leaves out the first frames of clips; all other values
        include them. "policy" holds the shares of :class:`GainShare`, None without dense outputs.
        "failed_clips", "interrupted" (a run that ended early) and "not_scored" give reasons; they
        are there if needed.
    """
    shares = record.gain_share.shares()
    summary = {
        "dense": _efficiency(record, "dense", scores),
        "blockcopy": _efficiency(record, "blockcopy", scores),
        "stock": None,
        "executed_fraction": _mean(record.executed),
        "target": target,
        "frames": record.meters["blockcopy"].frames,
        "clips": record.clips,
        "policy": {
            "gain_share": shares["policy"],
            "gain_share_random": shares["random"],
            "gain_share_frame_difference": shares["frame_difference"],
            "gain_share_oracle": shares["oracle"],
        },
    }
    if "stock" in record.meters:
        summary["stock"] = {"seconds_per_frame": record.meters["stock"].seconds_per_frame}
    if record.failures:
        summary["failed_clips"] = record.failures
    if record.interruptions:
        summary["interrupted"] = record.interruptions
    if unscored:
        summary["not_scored"] = unscored
    return summary


def write_summary(summary, path):
    """
    Args:
        summary (dict): from :func:`summarize`.
        path (str): path of the JSON file.
    """
    with atomic_write(path) as temporary, open(temporary, "w") as f:
        json.dump(summary, f, indent=2)


def remove_summary(output_dir):
    """
    Remove the summary of an earlier run, which may have another config. Only the main process does.

    Args:
        output_dir (str): folder, created if missing.
    """
    PathManager.mkdirs(output_dir)
    path = os.path.join(output_dir, "blockcopy_summary.json")
    if comm.is_main_process() and os.path.lexists(path):
        os.remove(path)


def summary_table(summary, record):
    """
    Returns:
        str: the summary as tables: models, stages of BlockCopy's time, quality of the policy.
    """
    models = []
    stock = summary["stock"]
    for name in ("stock", "dense", "blockcopy"):
        row = summary[name]
        if row is not None:
            speedup = stock["seconds_per_frame"] / row["seconds_per_frame"] if stock else None
            scores = [row.get(metric) for metric in _metrics(summary)]
            milliseconds = 1000 * row["seconds_per_frame"]
            models.append([name, *scores, row.get("gmacs"), milliseconds, speedup])
    headers = ["model", *_metrics(summary), "GMACs", "ms/frame", "x stock"]
    stages = record.meters["blockcopy"].seconds_per_stage
    policy = summary["policy"]
    tables = [
        _table(models, headers),
        _table(
            [[1000 * value for value in stages.values()]],
            [f"{name.replace('_', ' ')} ms" for name in stages],
        ),
        _table(
            [[summary["executed_fraction"], summary["target"], *policy.values()]],
            ["executed", "target", *(name.replace("_", " ") for name in policy)],
        ),
        f"{summary['frames']} frames of {summary['clips']} "
        f"{'clip' if summary['clips'] == 1 else 'clips'}, first frames included",
    ]
    failures = summary.get("failed_clips")
    if failures:
        tables.append("Clips that ended early:\n" + "\n".join(failures))
    if "interrupted" in summary:
        tables.append("The run ended early:\n" + "\n".join(summary["interrupted"]))
    if "not_scored" in summary:
        reasons = (f"{name}: {reason}" for name, reason in summary["not_scored"].items())
        tables.append("Not scored:\n" + "\n".join(reasons))
    return "\n\n".join(tables)


def _efficiency(record, name, scores):
    if name not in record.meters:
        return None
    meter = record.meters[name]
    return {
        **headline(scores.get(name)),
        "gmacs": meter.gmacs,
        "seconds_per_frame": meter.seconds_per_frame,
    }


def headline(results):
    """
    Args:
        results (dict or None): {task: {metric: value}} from the evaluators.

    Returns:
        dict[str, float or None]: the metrics of tables: mIoU for semantic segmentation, AP and AP50
        for instances, and the miss rate (MR, Reasonable) where it was measured, with those of its
        other settings.
    """
    results = results or {}
    if "sem_seg" in results:
        sem_seg = results["sem_seg"]
        return {"mIoU": _finite(sem_seg.get("mIoU", sem_seg.get("IoU")))}
    shown = {}
    task = results.get("segm") or results.get("bbox") or {}
    if task or "miss_rate" not in results:
        shown = {metric: _finite(task.get(metric)) for metric in ("AP", "AP50")}
    if "miss_rate" in results:
        for setting, rate in results["miss_rate"].items():
            shown["MR" if setting == "Reasonable" else setting] = _finite(rate)
    return shown


def _metrics(summary):
    return [key for key in summary["blockcopy"] if key not in ("gmacs", "seconds_per_frame")]


def _mean(values):
    return sum(values) / len(values) if values else None


def _finite(value):
    """Replaces NaN, which JSON lacks and evaluators return if there was nothing to score."""
    return None if value is None or not math.isfinite(value) else float(value)


def _table(rows, headers):
    return tabulate(
        rows, headers=headers, tablefmt="pipe", floatfmt=".3f", missingval="-", numalign="right"
    )
