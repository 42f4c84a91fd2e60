"""
Writes the tables of README and docs whose figures are in benchmarks/results.

    python -m benchmarks.tables

A table stands between `<!-- table NAME: begin -->` and `<!-- table NAME: end -->`, and is made by
the function of that name. After a benchmark has written its results, this command brings the pages
up to date; a test compares them.
"""

import argparse
import json
import re
import statistics
from pathlib import Path

from blockcopy_d2.atomic import atomic_write
from blockcopy_d2.engine.arguments import errors_end_the_program

from .accuracy import Accuracy
from .measure import RESULTS

ROOT = Path(__file__).resolve().parents[1]
# Functions that return the rows of a table, the names of its columns first, by page and name.
TABLES = {}


def main():
    _parser().parse_args()
    for page in sorted({page for page, _ in TABLES}):
        path = ROOT / page
        text = path.read_text()
        updated = with_tables(page, text)
        if updated != text:
            with atomic_write(path) as temporary:
                Path(temporary).write_text(updated)
        print(f"{page}: {'written' if updated != text else 'up to date'}")


def with_tables(page, text):
    """
    Args:
        page (str): path of a page from the top of the repository.
        text (str): content of the page.

    Returns:
        str: the text with its tables made anew.

    Raises:
        ValueError: the page has no place for one of its tables, or more than one.
    """
    for of_page, name in TABLES:
        if of_page != page:
            continue
        begin, end = f"<!-- table {name}: begin -->\n", f"<!-- table {name}: end -->\n"
        pattern = re.escape(begin) + ".*?" + re.escape(end)
        if len(re.findall(pattern, text, re.DOTALL)) != 1:
            raise ValueError(f"{page} needs one line {begin.strip()!r}, and {end.strip()!r} below.")
        table = begin + markdown(TABLES[page, name]()) + end
        text = re.sub(pattern, lambda match, table=table: table, text, flags=re.DOTALL)
    return text


def markdown(rows):
    """str: a table of the rows, each a list of texts; the names of the columns come first."""
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    lines = ["|" + "|".join(f" {cell} " if cell else " " for cell in row) + "|" for row in rows]
    return "\n".join(lines).replace("| --- |", "|---|").replace(" --- |", "---|") + "\n"


def results(name):
    """dict: a file of benchmarks/results."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def table(page):
    """Decorator: the function makes the table of its name on a page."""

    def register(function):
        TABLES[page, function.__name__] = function
        return function

    return register


# Streams on a GPU


_STREAMS = "h200_streams_maskrcnn_R50_FPN"


def _streams(kind, name, number, share):
    return results(f"{_STREAMS}{kind}_fp16")["blockcopy"][str(number)][share][f"{name}_ms"]


def _dense(number, name="frame"):
    return results(f"{_STREAMS}_fp16")["best_dense"][str(number)][f"{name}_ms"]


@table("README.md")
def cameras():
    dense, accuracy = _dense(8), Accuracy.of("h200_policy_accuracy")
    streetclips = "StreetClips Mask R-CNN R18-FPN"
    skipped = accuracy.only("229efc0").means(streetclips, "AP", dense=False)
    ap = accuracy.only("24ed300").means(streetclips, "AP", dense=False)

    def row(name, ms, score):
        text = f"{score.mean:.1f}" + (f" ± {score.deviation:.1f}" if score.runs > 1 else "")
        return [name, f"{ms:.2f}", str(int(40 / ms)), text]

    moving, still = (
        [_streams(kind, "frame", 8, share) for share in ("0.3", "0.15")] for kind in ("_motion", "")
    )
    in_place, moved = (skipped[f"every 2nd {how}", 0.5] for how in ("in place", "moved"))
    return [
        ["", "ms per frame", "cameras at 25 fps", "AP on StreetClips"],
        row("best dense model: `torch.compile` in a CUDA graph", dense, ap["dense", 1.0]),
        row("the same, every second frame; output kept between", dense / 2, in_place),
        [
            "the same, every second frame; output moved between",
            f"{dense / 2:.2f} + motion",
            "",
            f"{moved.mean:.1f}",
        ],
        row("BlockCopy, 0.3 of the blocks", moving[0], ap["EG", 0.3]),
        row("BlockCopy, 0.15 of the blocks", moving[1], ap["EG", 0.15]),
        [
            "BlockCopy, 0.3 / 0.15, cameras that stand still, no motion",
            " / ".join(f"{ms:.2f}" for ms in still),
            " / ".join(str(int(40 / ms)) for ms in still),
            "",
        ],
    ]


def _with_ratio(ms, dense):
    return f"{ms:.2f}, {dense / ms:.2f}x"


@table("docs/gpu.md")
def streams():
    rows = [["streams", "dense, torch.compile", "0.3", "0.15", "0.3, motion", "0.15, motion"]]
    for number in (1, 8, 16):
        ms = [
            _streams(kind, "frame", number, s) for kind in ("", "_motion") for s in ("0.3", "0.15")
        ]
        if number == 16:  # Not compiled.
            rows.append([str(number), "", *(f"{x:.2f}" for x in ms)])
        else:
            dense = _dense(number)
            rows.append([str(number), f"{dense:.2f}", *(_with_ratio(x, dense) for x in ms)])
    return rows


@table("docs/gpu.md")
def streams_network():
    rows = [["streams", "dense, torch.compile", "0.3", "0.15"]]
    for number in (1, 8, 16):
        ms = [_streams("", "network", number, share) for share in ("0.3", "0.15")]
        if number == 16:
            rows.append([str(number), "", *(f"{x:.2f}" for x in ms)])
        else:
            dense = _dense(number, "network")
            rows.append([str(number), f"{dense:.2f}", *(_with_ratio(x, dense) for x in ms)])
    return rows


@table("docs/gpu.md")
def streams_tf32():
    found = results(f"{_STREAMS}_tf32")
    header = ["streams", "dense frame, torch.compile", "0.3", "0.15", "dense network"]
    rows = [[*header, "0.3", "0.15"]]
    for number in ("1", "8"):
        row = [number]
        for name in ("frame_ms", "network_ms"):
            dense = found["best_dense"][number][name]
            row.append(f"{dense:.2f}")
            for share in ("0.3", "0.15"):
                row.append(_with_ratio(found["blockcopy"][number][share][name], dense))
        rows.append(row)
    return rows


@table("docs/gpu.md")
def cameras_and_accuracy():
    accuracy = Accuracy.of("h200_policy_accuracy").only("24ed300")
    lost = accuracy.means("StreetClips Mask R-CNN R18-FPN", "AP")
    header = ["executed", "ms per frame, 16 streams", "cameras at 25 fps"]
    rows = [[*header, "AP lost on StreetClips, 40 clips, R18-FPN"]]
    for share in ("0.3", "0.25", "0.15"):
        kind = "_motion_quarter" if share == "0.25" else "_motion"
        ms = _streams(kind, "frame", 16, share)
        mean = lost["EG", float(share)]
        rows.append(
            [share, f"{ms:.2f}", str(int(40 / ms)), f"{-mean.mean:.1f} ± {mean.deviation:.1f}"]
        )
    return rows


@table("docs/results.md")
def one_gpu():
    header = ["streams", "dense, batches of N", "0.3 of the blocks", "0.15"]
    rows = [[*header, "0.3, with motion", "0.15, with motion"]]
    for number in (1, 8, 16):
        ms = [
            _streams(kind, "frame", number, s) for kind in ("", "_motion") for s in ("0.3", "0.15")
        ]
        if number == 16:
            rows.append([str(number), "", *(f"{x:.2f}" for x in ms)])
        else:
            dense = _dense(number)
            cells = (f"{x:.2f}, **{dense / x:.2f}x**" for x in ms)
            rows.append([str(number), f"{dense:.2f}", *cells])
    return rows


# One frame on a GPU


@table("docs/gpu.md")
def network():
    files = [
        results(f"{gpu}_maskrcnn_R50_FPN_{dtype}")["network"]
        for gpu in ("h100", "h200")
        for dtype in ("fp16", "tf32")
    ]
    h100, h100_tf32, h200, h200_tf32 = files
    best, best_tf32 = (x["best_dense"]["network_ms"] for x in (h200, h200_tf32))

    def row(name, key, share=None):
        values = [x[key][share] if share else x.get(key) for x in files]
        cells = [f"{x:.2f}" if x else "" for x in values]
        ratios = [
            f"{b / x:.2f}x" if x else "" for b, x in ((best, values[2]), (best_tf32, values[3]))
        ]
        return [name, cells[0], cells[1], cells[2], ratios[0], cells[3], ratios[1]]

    return [
        ["executed", "H100, fp16", "H100, TF32", "H200, fp16", "", "H200, TF32", ""],
        row("stock Detectron2", "stock_ms"),
        row("dense, cuDNN", "cudnn_ms"),
        ["dense, torch.compile", "", "", f"{best:.2f}", "1.00x", f"{best_tf32:.2f}", "1.00x"],
        *(
            row(share, "blockcopy_ms", share)
            for share in ("1.0", "0.7", "0.5", "0.3", "0.2", "0.1", "0.01")
        ),
    ]


@table("docs/gpu.md")
def predictor():
    found = results("h200_predictor_maskrcnn_R18_FPN_fp16")

    def ms(name, digits=2):
        return f"{found[name + '_ms']:.{digits}f}"

    stock = f"{ms('default_predictor', 1)} / {ms('default_predictor_amp', 1)}"
    aside = "`VideoPredictor.stream` of a file, decoded by OpenCV on the thread that reads"
    call = "`VideoPredictor` of arrays, one call a frame, so that the copy is part of it"
    return [
        ["", "ms per frame"],
        ["`VideoPredictor.stream` of arrays", ms("stream")],
        ["`VideoPredictor` of tensors on the GPU", ms("on_gpu")],
        [call, ms("call")],
        [aside, ms("file")],
        ["`DefaultPredictor`, fp32 with TF32 / fp16 autocast", stock],
    ]


# CPUs


@table("docs/results.md")
def cpu():
    found = results("cpu_maskrcnn_R18_FPN")["mean_ms"]
    names = {
        "stock": "stock Detectron2 (bf16: autocast)",
        "compiled": "the same, batch norm folded, `torch.compile`",
        "dense": "dense, this engine",
        "blockcopy": "BlockCopy, 0.15 of the blocks",
    }
    rows = [["ms per frame", "fp32", "bf16"]]
    for key, name in names.items():
        rows.append([name, f"{found[key]:.0f}", f"{found[key + '_bf16']:.0f}"])
    return rows


# Accuracy


@table("docs/policy.md")
def worth():
    accuracy = Accuracy.of("h200_policy_accuracy")
    today, trainings = ["24ed300"], ["229efc0", "184153b"]
    streetclips, davis = "StreetClips Mask R-CNN R18-FPN", "DAVIS Mask R-CNN R50-FPN"
    swiftnet, deeplab = "CamVid SwiftNet-R50", "CamVid DeepLabV3+ R50"
    rows = [
        ("StreetClips, R18-FPN, AP", streetclips, "AP", 0.3, today),
        ("", streetclips, "AP", 0.25, today),
        ("", streetclips, "AP", 0.15, today),
        ("", streetclips, "AP", 0.08, today),
        ("DAVIS, R50-FPN, AP", davis, "AP", 0.3, ["f80426b", *today]),
        ("", davis, "AP", 0.15, today),
        ("PETS09, CSP, AP50", "PETS09 CSP R50", "AP50", 0.15, today),
        ("CamVid, SwiftNet-R50, mIoU", swiftnet, "mIoU", 0.33, trainings),
        ("", swiftnet, "mIoU", 0.2, today),
        ("CamVid, DeepLabV3+ R50, mIoU", deeplab, "mIoU", 0.33, trainings),
        ("", deeplab, "mIoU", 0.2, trainings),
    ]
    methods = {"`ExpectedGain`": "EG", "nothing learned": "EG prior", "`MovedDifference`": "MD"}
    found = [["", "executed", "dense", *methods, "runs", "revision"]]
    for name, network, score, share, revisions in rows:
        of_row = accuracy.only(*revisions)
        means = of_row.means(network, score)
        if network == streetclips:
            # Few runs of each revision, in which it is the same.
            of_all = accuracy.only("5fba256", "229efc0", *today).means(network, score)
            means |= {key: mean for key, mean in of_all.items() if key[0] == "MD"}
        cells = [means.get((method, share)) for method in methods.values()]
        # A difference of one run or two may be chance.
        cells = [x if x is not None and x.runs >= 3 else None for x in cells]
        dense = of_row.means(network, score, dense=False)["dense", 1.0].mean
        texts = ["" if x is None else f"{_rounded(x.mean)} ± {x.deviation:.1f}" for x in cells]
        runs = str(cells[0].runs)
        found.append([name, f"{share:.2f}", f"{dense:.1f}", *texts, runs, ", ".join(revisions)])
    return found


def _rounded(value):
    """str: with one digit, and no minus in front of 0."""
    return f"{round(value, 1) + 0.0:.1f}"


@table("docs/results.md")
def streetclips():
    lost = (
        Accuracy.of("h200_policy_accuracy")
        .only("24ed300")
        .means("StreetClips Mask R-CNN R18-FPN", "AP")
    )
    shares = (0.3, 0.25, 0.15, 0.08)
    means = [lost["EG", share] for share in shares]
    return [
        ["executed", *(f"{share:.2f}" for share in shares)],
        ["AP to dense, 49.9", *(f"{_rounded(x.mean)} ± {x.deviation:.1f}" for x in means)],
    ]


@table("docs/results.md")
def from_scratch():
    run = results("h200_section_4")
    found = {(row["method"], row["target"]): row for row in run["rows"]}
    dense = found["dense", None]["AP"]
    rows = [["tau", "executed", "the paper's policy", "random blocks", "share of the gain", "runs"]]
    for target in (0.3, 0.5, 0.7):
        learned = found["blockcopy", target]
        lost = [
            [seed["AP"] - dense for seed in found[method, target]["seeds"]]
            for method in ("blockcopy", "random")
        ]
        rows.append(
            [
                str(target),
                f"{learned['executed_fraction']:.2f}",
                *(f"{_rounded(statistics.fmean(x))} ± {statistics.stdev(x):.1f}" for x in lost),
                f"{learned['gain_share']:.2f}",
                str(len(learned["seeds"])),
            ]
        )
    return rows


# Motion


@table("docs/motion.md")
def moved():
    accuracy = Accuracy.of("h200_policy_accuracy")
    streetclips, davis = "StreetClips Mask R-CNN R18-FPN", "DAVIS Mask R-CNN R50-FPN"
    skipped = (
        ("StreetClips, R18-FPN, AP, every second frame", streetclips, ["229efc0"], "2nd", 0.5),
        ("every third frame", streetclips, ["229efc0"], "3rd", 0.33),
        ("DAVIS, R50-FPN, AP, every third frame", davis, ["229efc0", "184153b"], "3rd", 0.33),
    )
    rows = [["", "executed", "output in place", "output moved", "revision"]]
    for name, network, revisions, which, share in skipped:
        means = accuracy.only(*revisions).means(network, "AP")
        cells = [means[f"every {which} {how}", share] for how in ("in place", "moved")]
        texts = [_rounded(x.mean) for x in cells]
        if cells[0].runs > 1:
            texts = [f"{text} ± {x.deviation:.1f}" for text, x in zip(texts, cells, strict=True)]
        rows.append([name, f"{share:.2f}", *texts, ", ".join(revisions)])
    return rows


@table("docs/motion.md")
def quality():
    found = results("motion_quality_davis_video_val")["estimators"]

    def cell(name, size):
        of = found.get(f"{name}, cells of {size}")
        return "" if of is None else f"{of['difference']:.1f}, {of['IoU']:.1f}"

    names = {"none": "left in place", "DISFlow": "`DISFlow`", "BlockMatching": "`BlockMatching`"}
    rows = [["", "cells of 8", "16", "32"]]
    return rows + [[text, *(cell(name, n) for n in (8, 16, 32))] for name, text in names.items()]


def _motion_costs(name, estimators, digits):
    found = results(name)["motion"]
    times, megabytes = found["median_ms"], found["moved_mb"]

    def cells(key, executed=True):
        of = [
            f"{key}, executed 0, moving {x}" if executed else f"{key}, moving {x}"
            for x in ("1", "0.3", "0")
        ]
        return [f"{times[x]:.{digits}f}" for x in of]

    rows = [["no block executed", "all cells move", "0.3 of the cells", "none"]]
    for estimator in estimators:
        rows.append(
            [f"luma and `{estimator}`", f"{times['estimate ' + estimator]:.{digits}f}", "", ""]
        )
    rows.append(["frame state, painted and last output", *cells("history", executed=False)])
    for maps in ("outputs", "all"):
        rows.append([f"`MAPS {maps}`, {megabytes[maps]:.0f} MB", *cells(f"caches {maps}")])
    return rows


@table("docs/motion.md")
def costs_cpu():
    estimators = ("DISFlow", "BlockMatching", "CodecVectors")
    return _motion_costs("cpu_motion_maskrcnn_R18_FPN_fp32", estimators, 1)


@table("docs/motion.md")
def costs_gpu():
    return _motion_costs("h200_motion_maskrcnn_R50_FPN_fp16", ("BlockMatching",), 3)


def _parser():
    return argparse.ArgumentParser(
        prog="python -m benchmarks.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


if __name__ == "__main__":
    with errors_end_the_program():
        main()
