"""Tables and figures of README and docs are those of benchmarks/results."""

import re
from pathlib import Path

import pytest

from benchmarks import tables
from benchmarks.accuracy import Accuracy
from benchmarks.measure import RESULTS

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(RESULTS.glob("*.json"))
STREAMS = "h200_streams_maskrcnn_R50_FPN"


@pytest.mark.parametrize("page", sorted({page for page, _ in tables.TABLES}))
def test_tables_are_those_of_the_results(page):
    text = (ROOT / page).read_text()
    assert tables.with_tables(page, text) == text, "python -m benchmarks.tables writes them"
    assert text.count("<!-- table ") == 2 * sum(of == page for of, _ in tables.TABLES)


def of(name, *keys):
    """The value in a file of results."""
    value = tables.results(name)
    for key in keys:
        value = value[key]
    return value


def plain(text):
    """A page without marks of bold text, its lines put together."""
    return " ".join(text.replace("**", "").split())


def test_sentences_of_several_cameras():
    cameras, still = (of(f"{STREAMS}{kind}_fp16", "cameras_at_25") for kind in ("_motion", ""))
    readme, gpu = (plain((ROOT / page).read_text()) for page in ("README.md", "docs/gpu.md"))
    assert f"a GPU carries {cameras['0.15']} cameras at 0.15" in readme
    assert f"blocks, {still['0.15']} without motion" in readme
    assert (
        f"time for {still['0.15']} cameras at 0.15 of the blocks and {still['0.3']} at 0.3" in gpu
    )
    assert f"dense model for {still['best_dense']}." in gpu
    megabytes, moving = (of(f"{STREAMS}{kind}_fp16", "memory_mb") for kind in ("", "_motion"))
    one, eight, sixteen = (f"{megabytes[n] / 1000:.1f}" for n in ("1", "8", "16"))
    assert f"alone takes {one} GB, weights and kernels included, eight {eight} GB, 16" in gpu
    assert f"16 take {sixteen} (with motion " in gpu
    with_motion = "(with motion {:.1f}, {:.1f} and {:.1f})"
    assert with_motion.format(*(moving[n] / 1000 for n in ("1", "8", "16"))) in gpu


def test_accuracy_of_the_demo():
    accuracy = Accuracy.of("h200_policy_accuracy").only("24ed300")
    ap = accuracy.means("StreetClips Mask R-CNN R18-FPN", "AP", dense=False)
    text = f"have {ap['EG', 0.15].mean:.1f} AP where dense has {ap['dense', 1.0].mean:.1f}"
    assert text in plain((ROOT / "README.md").read_text()) and ap["EG", 0.15].runs >= 3


def test_goals_of_a_gpu():
    page = (ROOT / "docs" / "gpu.md").read_text()
    rows = re.findall(r"^\| (.*?) \| (.*?) \| (.*?) \| ?(.*?) ?\|$", page, re.M)
    reached = {row[0]: row[2:] for row in rows}
    dense = of(f"{STREAMS}_fp16", "best_dense")
    for name, number in (("one stream", "1"), ("eight streams", "8")):
        for part in ("network", "frame"):
            cells = reached[f"{name}, {part} at 0.3 and 0.15"]
            for kind, cell in zip(("", "_motion"), cells, strict=True):
                if not cell:
                    continue
                of_number = of(f"{STREAMS}{kind}_fp16", "blockcopy", number)
                ratios = [
                    f"{dense[number][f'{part}_ms'] / of_number[share][f'{part}_ms']:.2f}x"
                    for share in ("0.3", "0.15")
                ]
                assert ", ".join(ratios) in cell, (name, part, kind)
    one = of(f"{STREAMS}_one_block_fp16", "blockcopy", "1", "0.01", "network_ms")
    assert f"{one:.2f} ms" in reached["network with one block"][0]


def test_times_of_the_page_on_scale():
    page = (ROOT / "docs" / "scale.md").read_text()
    times = [float(x) for x in re.findall(r"^\| [^|]* \| (\d\.\d+) \| \d+ \|", page, re.M)]
    dense = of(f"{STREAMS}_fp16", "best_dense", "8", "frame_ms")
    measured = [dense]
    for kind, number, share in (
        ("_motion", "8", "0.3"),
        ("_motion", "8", "0.15"),
        ("", "16", "0.15"),
    ):
        measured.append(of(f"{STREAMS}{kind}_fp16", "blockcopy", number, share, "frame_ms"))
    assert times == pytest.approx(measured, abs=0.005)
    decode = (of("cpu_decode_pyav", size, "core_ms") for size in ("1024x2048", "720x1280"))
    assert "takes {:.0f} ms of a core of ours at 1024x2048 and {:.0f}".format(*decode) in plain(
        page
    )
    alone = of(f"{STREAMS}_motion_fp16", "blockcopy", "1", "0.15", "frame_ms")
    assert f"a frame takes {alone:.2f} ms" in plain(page)


def test_sentences_on_cuts():
    page = plain((ROOT / "docs" / "streaming.md").read_text())
    camvid, streets, davis = (
        of(f"scene_cuts_{name}", "changed")
        for name in ("camvid_val", "streetclips_val", "davis_video_val")
    )
    most = [x["frames"]["in place"][1] for x in (camvid, streets, davis)]
    text = "{:.2f} of the picture changes on CamVid, {:.2f} on StreetClips, and {:.2f} on DAVIS"
    assert text.format(*most) in page
    assert f"cars: {davis['frames']['moved'][1]:.2f} from the moved frame" in page
    least = [of["scenes"][how][0] for of in (davis, streets) for how in ("in place", "moved")]
    text = "at least {:.2f} changes on DAVIS ({:.2f} from the moved frame), and {:.2f} ({:.2f})"
    assert text.format(*least) in page


def test_sentences_on_single_frames():
    gpu = plain((ROOT / "docs" / "gpu.md").read_text())
    frame = of("h200_maskrcnn_R50_FPN_fp16", "frame")
    assert f"takes {frame['stock_ms']:.1f} ms for a frame" in gpu
    assert f"and {frame['stock_fp16_autocast_ms']:.1f} under fp16 autocast" in gpu
    small = of("h200_maskrcnn_R18_FPN_fp16", "frame")
    assert f"takes {small['blockcopy_ms']['0.3']:.2f} ms at 0.3" in gpu
    assert f"the dense model's {small['best_dense']['frame_ms']:.2f} (" in gpu
    half, single = (of(f"h200_maskrcnn_R50_FPN_{x}", "cache_mb") for x in ("fp16", "tf32"))
    assert f"Caches of a stream: {half} MB in fp16, {single} MB in TF32" in gpu
    swiftnet = of("h200_swiftnet_R50_fp16", "network")
    shares = swiftnet["blockcopy_ms"]
    assert f"takes {swiftnet['cudnn_ms']:.2f} ms by cuDNN, {shares['1.0']:.2f} with all" in gpu
    assert f"{shares['0.3']:.2f} with 0.3 of them and {shares['0.01']:.2f} with 0.01" in gpu


def test_sentences_on_cpus():
    results, policy = (plain((ROOT / "docs" / x).read_text()) for x in ("results.md", "policy.md"))
    speedup = of("cpu_maskrcnn_R18_FPN", "speedup")
    ratios = [
        speedup[f"blockcopy{kind}"][f"against_{rival}{kind}"]
        for kind in ("", "_bf16")
        for rival in ("stock", "compiled")
    ]
    text = (
        "In fp32 that is {:.1f}x stock and {:.1f}x the compiled model, in bf16 {:.1f}x and {:.1f}x."
    )
    assert text.format(*ratios) in results
    times, readme = of("cpu_maskrcnn_R18_FPN", "mean_ms"), plain((ROOT / "README.md").read_text())
    text = (
        "{:.1f} times as fast as stock Detectron2, {:.1f} times as fast as its compiled network,"
        " and {:.1f} times as fast as all blocks"
    )
    ratios = [times[rival] / times["blockcopy"] for rival in ("stock", "compiled", "dense")]
    assert text.format(*ratios) in readme
    stages = of("cpu_maskrcnn_R18_FPN", "stages_ms", "blockcopy")
    moving = stages["motion"] + stages["move_caches"]
    assert (
        f"spends {stages['network']:.0f} ms in backbone and RPN, {stages['heads']:.0f} in"
        in results
    )
    assert f"{moving:.0f} in motion ({stages['move_caches']:.0f} of it moving" in results
    assert f"updates, and {stages['observe']:.1f} in preparing" in results
    assert f"updates take {stages['policy'] + stages['policy_update']:.1f} ms a frame" in policy
    shares = {x["method"]: x["gain_share"] for x in of("cpu_from_scratch", "rows")}
    assert f"find {shares['blockcopy']:.2f} of the gain" in policy
    assert f"`MovedDifference` {shares['moved_difference']:.2f}" in policy


def test_sentences_on_copied_features():
    motion = plain((ROOT / "docs" / "motion.md").read_text())
    for name, start in (
        ("maskrcnn", "steps on StreetClips, "),
        ("mask_rcnn_R_50_FPN", "; on DAVIS "),
    ):
        of_map = of(f"copied_features_{name}_blockcopy", "after_frames", "12", "p3")
        others = [of_map[x] for x in ("bicubic", "whole pixels", "composed vectors")]
        assert of_map["bilinear"] < min(others) < max(others) < of_map["in place"]
        figures = f"{min(others):.2f} to {max(others):.2f}"
        assert figures in motion.split(start, 1)[1][:60], name
        assert f"{of_map['bilinear']:.2f}" in motion and f"{of_map['in place']:.2f}" in motion


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_results_say_when_and_of_which_code_they_are(path):
    text = path.read_text()
    assert re.search(r'"date": "2\d{3}-', text) and re.search(r'"revision": "[0-9a-f]{7}', text)


def test_what_a_table_needs(monkeypatch):
    rows = {("page.md", "one"): lambda: [["", "a"], ["b", "1.5"]]}
    monkeypatch.setattr(tables, "TABLES", rows)
    text = "x\n<!-- table one: begin -->\nold\n<!-- table one: end -->\ny\n"
    written = tables.with_tables("page.md", text)
    assert written.splitlines()[2:5] == ["| | a |", "|---|---|", "| b | 1.5 |"]
    assert written.startswith("x\n") and written.endswith("y\n")
    with pytest.raises(ValueError, match="page.md needs one line '<!-- table one: begin -->'"):
        tables.with_tables("page.md", "nothing")


def test_means_over_runs():
    runs = [
        {
            "network": "n",
            "revision": r,
            "rows": [
                {"method": "dense", "executed": 1.0, "AP": 50.0},
                {"method": "EG 0.147", "executed": 0.147, "AP": ap},
                {"method": "prior.15", "executed": 0.15, "AP": 40.0},
            ],
        }
        for r, ap in (("a", 49.0), ("b", 47.0), ("c", 10.0))
    ]
    found = Accuracy(runs).only("a", "b").means("n", "AP")
    assert found["EG", 0.15].mean == -2.0 and found["EG", 0.15].runs == 2
    assert found["EG", 0.15].deviation == pytest.approx(2**0.5)
    assert found["EG prior", 0.15].mean == -10.0
    assert Accuracy(runs).means("n", "AP", dense=False)["dense", 1.0].mean == 50.0
    with pytest.raises(ValueError, match="No run of 'm'; there are"):
        Accuracy(runs).means("m", "AP")
