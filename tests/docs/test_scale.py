"""The page on scale: its arithmetic, and its programs."""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest

from blockcopy_d2.engine.batch_folder import BatchFolder
from tests.engine.test_batch import FRAMES, write_video
from tests.small_model import CONFIG, small_model_opts

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "scale.md").read_text()
SPEC = importlib.util.spec_from_file_location("capacity", ROOT / "tools" / "capacity.py")
capacity = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(capacity)


def run(command):
    return capacity.plan(capacity.get_parser().parse_args(shlex.split(command)))


@pytest.mark.parametrize(
    "wrong", ["cameras 0", "load nan", "decode-ms -1", "frame-ms 0", "fps inf"]
)
def test_plans_are_made_of_positive_numbers(wrong):
    command = f"--cameras 10 --frame-ms 3 --{wrong}"
    with pytest.raises(ValueError, match="above 0 and finite"):
        run(command)


def program(start):
    """Returns the Python block of the page that begins with a text."""
    (code,) = [
        x for x in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if x.startswith(start)
    ]
    return code


def test_the_output_of_the_page_is_that_of_its_command():
    block = r"```bash\npython tools/capacity.py ([^\n]*)\n```\n\n```text\n(.*?)```"
    pairs = re.findall(block, PAGE, re.DOTALL)
    assert pairs
    for command, output in pairs:
        assert "\n".join(run(command)) == output.strip()


def test_the_table_of_cameras_follows_from_its_times():
    rows = re.findall(r"^\| [^|]* \| (\d\.\d+) \| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.M)
    assert len(rows) == 4
    for milliseconds, whole, planned, gpus in rows:
        figures = capacity.Figures(float(milliseconds), 1604)
        assert capacity.cameras_per_gpu(figures, 25, load=1.0)[0] == int(whole)
        assert capacity.cameras_per_gpu(figures, 25) == (int(planned), 86)
        assert run(f"--cameras 500 --frame-ms {milliseconds}")[-1] == f"GPUs: {gpus}"
    assert capacity.cameras_per_gpu(capacity.Figures(0.6241, 845), 5) == (256, 164)
    figures = capacity.Figures(1.61, 1604)
    assert capacity.hours_of_files(figures, 15_000_000, 16) == pytest.approx(0.42, abs=0.005)
    figures = capacity.Figures(3.21, 1604)
    assert capacity.hours_of_files(figures, 15_000_000, 16) == pytest.approx(0.84, abs=0.005)


def test_figures_of_a_benchmark(tmp_path):
    """The best batch size counts, with its memory."""
    file = ROOT / "benchmarks" / "results" / "h200_streams_maskrcnn_R50_FPN_fp16.json"
    measured = json.loads(file.read_text())
    for share in ("0.15", "0.3"):
        figures = capacity.Figures.of_benchmark(measured, share)
        cameras, _ = capacity.cameras_per_gpu(figures, 25, load=1.0)
        assert cameras == measured["cameras_at_25"][share]
    results = {
        "blockcopy": {"1": {"0.2": {"frame_ms": 2.0}}, "8": {"0.2": {"frame_ms": 1.0}}},
        "memory_mb": {"1": 1600, "8": 8000},
    }
    assert capacity.Figures.of_benchmark(results, "0.2") == capacity.Figures(1.0, 1000.0, 8)
    for other in ({"keypoints": {}}, []):
        with pytest.raises(ValueError, match="not written by `python -m benchmarks.streams`"):
            capacity.Figures.of_benchmark(other, "0.2")
    (tmp_path / "a.json").write_text(json.dumps(results))
    lines = run(f"--cameras 100 --benchmark {tmp_path / 'a.json'} --share 0.2")
    assert lines[0].endswith("in batches of 8") and lines[1:] == [
        "cameras per GPU: 32 by time, 139 by memory",
        "GPUs: 4",
    ]
    with pytest.raises(ValueError, match="--share 0.5 was not measured; there are 0.2"):
        run(f"--cameras 100 --benchmark {tmp_path / 'a.json'} --share 0.5")


@pytest.mark.parametrize(
    "command, message",
    [
        ("--cameras 5", "Give --frame-ms, or --benchmark"),
        ("--cameras 5 --frame-ms -1", "must be above 0"),
        ("--cameras 5 --frame-ms 1 --load 1.5", "--load at most 1"),
        ("--cameras 5 --frame-ms 100", "Not one camera fits"),
    ],
)
def test_what_makes_no_sense_is_refused(command, message):
    with pytest.raises(ValueError, match=message):
        run(command)


def test_cameras_stay_where_they_are():
    names = {}
    exec(program("import hashlib"), names)
    cameras = [f"camera {index}" for index in range(500)]
    gpus = [f"gpu {index}" for index in range(14)]
    for slots, own, others in ((40, 34, 15), (43, 32, 3)):
        before = names["assign"](cameras, gpus, slots)
        counts = [list(before.values()).count(gpu) for gpu in gpus]
        assert len(before) == 500 and max(counts) <= slots and counts[0] == own
        assert names["assign"](reversed(cameras), gpus, slots) == before
        after = names["assign"](cameras, gpus[1:], slots)
        assert sum(before[camera] != after[camera] for camera in cameras) == own + others


@pytest.mark.slow
def test_the_pipeline_of_ray_data(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="needs Ray")
    pytest.importorskip("ray.data", reason="needs Ray Data")
    for name in ("a", "b", "c"):
        write_video(tmp_path / "videos" / f"{name}.mp4")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    opts = small_model_opts(tmp_path)
    output = str(tmp_path / "results")
    names = {"config": CONFIG, "opts": opts, "output": output, "actors": 2, "gpus_per_actor": 0}
    names |= {"inputs": [str(tmp_path / "videos" / "*.mp4")], "__name__": "__main__"}
    ray.init(address="local", include_dashboard=False)
    try:
        exec(program("import dataclasses"), names)
    finally:
        ray.shutdown()
    assert [record["error"] for record in names["records"]] == ["None"] * 3
    folder = BatchFolder(output)
    assert not folder.pending(names["tasks"]) and len(names["tasks"]) == 3
    assert all(folder.record(task)["frames"] == FRAMES for task in names["tasks"])
