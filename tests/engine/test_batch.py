"""Batches: results are kept no matter how a run ends, and no video is run twice."""

import contextlib
import glob
import json
import os
import resource
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data.catalog import Metadata

from blockcopy_d2 import batch
from blockcopy_d2.engine.batch import VideoJob
from blockcopy_d2.engine.batch_folder import BatchFolder
from blockcopy_d2.engine.batch_tasks import find_videos
from blockcopy_d2.engine.defaults import load_config
from blockcopy_d2.engine.predictor import VideoPredictor
from blockcopy_d2.policy import AllBlocks
from blockcopy_d2.resources import config_path
from blockcopy_d2.results import ResultsWriteError, RowMaker
from blockcopy_d2.visualization import VideoWriter
from tests.results.test_rows import found
from tests.small_model import CONFIG, small_model_opts

FRAMES = 4
ROOT = Path(__file__).resolve().parents[2]


def write_video(path, shift=12, frames=FRAMES):
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, fps=10) as video:
        for index in range(frames):
            image = np.full((96, 160, 3), 90, dtype=np.uint8)
            image[20:60, 10 + shift * index : 50 + shift * index] = (40, 90, 220)
            video.write(image)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def predictor(weights):
    switch = ["MODEL.BLOCKCOPY.ENABLED", "True", "MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY", "2"]
    return VideoPredictor(load_config(config_path(CONFIG), [*small_model_opts(weights), *switch]))


@pytest.fixture
def videos(tmp_path):
    write_video(tmp_path / "videos" / "a.mp4")
    write_video(tmp_path / "videos" / "north" / "a.mp4", shift=9)
    write_video(tmp_path / "videos" / "z.mp4", shift=6)
    return tmp_path / "videos"


class Finder:
    """Stands for a predictor where detections do not matter: finds a box in every frame."""

    learner, model = None, types.SimpleNamespace(policy=AllBlocks(), device=torch.device("cpu"))

    def stream(self, video):
        for index, (image, seconds) in enumerate(video.timed()):
            output = {"instances": found((index, 2, 50, 60))}
            is_first = index == 0
            yield (
                image,
                types.SimpleNamespace(
                    output=output, executed=0.25, is_first=is_first, time=seconds
                ),
            )


@pytest.fixture
def run_model(run, predictor, monkeypatch):
    """Runs like ``run``, with a model."""
    monkeypatch.setattr(batch, "VideoPredictor", lambda cfg: predictor)
    return run


@pytest.fixture
def run(tmp_path, weights, monkeypatch):
    """The command line; returns exit code and summary."""
    monkeypatch.setattr(batch, "VideoPredictor", lambda cfg: Finder())

    def run(*arguments, opts=(), output=tmp_path / "results"):
        command = ["batch", "--config-file", CONFIG, "--output", str(output), *map(str, arguments)]
        command += ["--opts", *small_model_opts(weights), *opts]
        monkeypatch.setattr(sys, "argv", command)
        code = 0
        try:
            batch.main()
        except SystemExit as error:
            code = error.code
        path = output / "summary.json"
        return code, json.loads(path.read_text()) if path.is_file() else None

    return run


@pytest.fixture
def counted(monkeypatch):
    """Names of the videos that are run."""
    names, call = [], VideoJob.__call__

    def counting(self, task, progress=None):
        names.append(task.results)
        return call(self, task, progress)

    monkeypatch.setattr(VideoJob, "__call__", counting)
    return names


def visible(folder):
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and ".batch" not in path.parts
    )


def test_a_folder_of_videos(run_model, videos, predictor, tmp_path):
    code, summary = run_model("--input", f"{videos}/**/*.mp4")
    assert code == 0 and summary["done"] == 3 and summary["frames"] == 3 * FRAMES
    assert 0 < summary["executed"] < 1 and summary["frames_per_second"] > 0
    assert summary["categories"]["things"]["2"] == "car"
    names = ["a.mp4.json", "north/a.mp4.json", "summary.json", "z.mp4.json"]
    assert visible(tmp_path / "results") == names
    rows = json.loads((tmp_path / "results" / "north" / "a.mp4.json").read_text())
    assert {row["time"] for row in rows} == {0, 0.1, 0.2, 0.3}
    make = RowMaker(Metadata(thing_classes=[]))
    source = videos / "north" / "a.mp4"
    first = next(iter(predictor.stream(source)))[1]
    of_first = [row for row in rows if row["image_id"] == 0]
    assert of_first == make(first.output, 0, 0.0) and of_first[0]["segmentation"]["counts"]


def test_results_do_not_depend_on_what_was_run_before(run_model, videos, tmp_path):
    run_model("--input", f"{videos}/**/*.mp4")
    run_model("--input", videos / "z.mp4", output=tmp_path / "alone")
    assert (tmp_path / "alone" / "z.mp4.json").read_bytes() == (
        tmp_path / "results" / "z.mp4.json"
    ).read_bytes()


def test_a_broken_video_is_reported_and_left_out(run, videos, counted):
    (videos / "north" / "broken.mp4").write_bytes(b"no video")
    code, summary = run("--input", f"{videos}/**/*.mp4")
    assert code == 1 and summary["done"] == 3 and summary["failed"] == 1
    (failure,) = summary["failures"]
    assert failure["video"].endswith("broken.mp4") and "cannot be read" in failure["error"]
    del counted[:]
    write_video(videos / "north" / "broken.mp4")
    code, summary = run("--input", f"{videos}/**/*.mp4")
    assert code == 0 and counted == ["north/broken.mp4.json"] and summary["done"] == 4


def test_a_truncated_video_is_named(run, videos):
    name = videos / "cut.mp4"
    write_video(name, frames=8)
    name.write_bytes(name.read_bytes()[:-60])
    code, summary = run("--input", name)
    assert code == 1 and summary["done"] == 1
    assert summary["incomplete"][0]["video"].endswith("cut.mp4")
    code, summary = run("--input", name)
    assert code == 1 and summary["frames_of_this_run"] == 0, "its rows are kept"
    assert run("--input", name, "--max-frames", 2, output=videos.parent / "short")[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_what_is_done(run, videos, counted, monkeypatch, tmp_path, number):
    on_frames = batch.BatchRun._on_frames

    def stop(self, task, frames):
        on_frames(self, task, frames)
        if task.results.startswith("north") and frames == 2:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(batch.BatchRun, "_on_frames", stop)
        code, summary = run("--input", f"{videos}/**/*.mp4")
    assert code == 128 + number and summary["stopped"] == signal.Signals(number).name
    assert summary["done"] == 1 and summary["unfinished"] == 2
    assert visible(tmp_path / "results") == ["a.mp4.json", "summary.json"]
    del counted[:]
    code, summary = run("--input", f"{videos}/**/*.mp4")
    assert code == 0 and counted == ["north/a.mp4.json", "z.mp4.json"] and summary["done"] == 3


def test_an_interrupt_of_another_kind_is_one_too(run, videos, monkeypatch):
    """Ray swallows what the handler of a signal raises, and raises an interrupt of its own."""

    def interrupted(self):
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        raise KeyboardInterrupt

    monkeypatch.setattr(batch.BatchRun, "_run_pending", interrupted)
    code, summary = run("--input", videos / "a.mp4")
    assert code == 128 + signal.SIGTERM and summary["stopped"] == "SIGTERM"


def test_a_video_without_results_is_run_again(run, videos, counted, tmp_path, monkeypatch):
    """Killed after the record of a video was written, and before its results had their name."""
    run("--input", videos / "a.mp4")
    (tmp_path / "results" / "a.mp4.json").unlink()
    (tmp_path / "results" / ".batch" / "partial").mkdir()
    (tmp_path / "results" / ".batch" / "partial" / "left").write_text("by a killed program")
    with monkeypatch.context() as patch:
        patch.setattr(batch.BatchRun, "_run_pending", lambda self: None)
        _, summary = run("--input", videos / "a.mp4")
    assert summary["done"] == 0 and summary["unfinished"] == 1 and not summary["results"]
    code, summary = run("--input", videos / "a.mp4")
    assert code == 0 and counted == ["a.mp4.json"] * 2 and summary["unfinished"] == 0
    assert not (tmp_path / "results" / ".batch" / "partial").exists()


def test_a_video_that_changed_is_run_again(run, videos, counted):
    run("--input", videos / "a.mp4")
    write_video(videos / "a.mp4", frames=2)
    _, summary = run("--input", videos / "a.mp4")
    assert counted == ["a.mp4.json"] * 2 and summary["frames"] == 2


def test_results_of_two_configs_are_not_mixed(run, videos, tmp_path):
    run("--input", videos / "a.mp4")
    opts = ["MODEL.BLOCKCOPY.POLICY.NAME", "AllBlocks"]
    code, _ = run("--input", videos / "z.mp4", opts=opts)
    assert "MODEL.BLOCKCOPY.POLICY.NAME was 'ExpectedGain', is 'AllBlocks'" in code
    assert visible(tmp_path / "results") == ["a.mp4.json", "summary.json"]
    code, _ = run("--input", videos / "z.mp4", "--confidence-threshold", 0.5)
    assert "--confidence-threshold was 0.0, is 0.5" in code
    code, summary = run("--input", videos / "z.mp4", "--overwrite", opts=opts)
    assert code == 0 and visible(tmp_path / "results") == ["summary.json", "z.mp4.json"]


def test_other_weights_are_other_settings(run, videos, weights):
    run("--input", videos / "a.mp4")
    path = weights / "model.pth"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole + b" ")
        assert "content of" in run("--input", videos / "a.mp4")[0]
    finally:
        path.write_bytes(whole)


def test_results_of_two_versions_are_not_mixed(run, videos, monkeypatch):
    run("--input", videos / "a.mp4")
    monkeypatch.setattr("blockcopy_d2.__version__", "9.0")
    code, _ = run("--input", videos / "a.mp4")
    assert "results of other settings: version was" in code


def test_names_of_all_kinds(run, videos, tmp_path):
    for name in ("a:b\nc%.mp4", os.fsdecode(b"caf\xe9.mp4"), "[1].mp4"):
        os.link(videos / "a.mp4", videos / name)
    code, summary = run("--input", f"{videos}/*.mp4")
    assert code == 0 and summary["done"] == 5
    assert os.path.exists(tmp_path / "results" / os.fsdecode(b"caf\xe9.mp4.json"))
    assert "caf\\xe9.mp4" in "".join(result["video"] for result in summary["results"])
    assert find_videos([str(videos / "[1].mp4")], output="x")[0].results == "[1].mp4.json"


def test_folders_of_frames_are_videos(tmp_path):
    (tmp_path / "clips" / "a").mkdir(parents=True)
    (tmp_path / "clips" / "a" / "0.png").touch()
    (tmp_path / "clips" / "empty").mkdir()
    (task,) = find_videos([f"{tmp_path}/clips/*"], output=str(tmp_path / "out"))
    assert task.results == "a.json"
    (task,) = find_videos([f"{tmp_path}/**"], output=str(tmp_path / "out"))
    assert task.results == "clips/a.json", "its frames are not videos of their own"
    for output in (tmp_path / "clips" / "a", tmp_path / "clips" / "a" / "results"):
        with pytest.raises(ValueError, match="lies in the folder of frames"):
            find_videos([f"{tmp_path}/clips/a"], output=str(output))
    with pytest.raises(FileNotFoundError, match=r"no image.*give '.*clips/\*'"):
        find_videos([f"{tmp_path}/clips"], output=str(tmp_path / "out"))


def test_patterns_pass_over_the_results(videos, tmp_path):
    (videos / "out").mkdir()
    (videos / "out" / "a.mp4.json").touch()
    tasks = find_videos([f"{videos}/**", f"{videos}/a.mp4"], output=str(videos / "out"))
    assert [task.results for task in tasks] == ["a.mp4.json", "north/a.mp4.json", "z.mp4.json"]


def test_links_in_a_circle_lead_to_no_video_twice(tmp_path):
    folder = tmp_path / "videos"
    for path in (folder / "a.mp4", folder / "north" / "b.mp4", tmp_path / "far" / "c.mp4"):
        path.parent.mkdir(exist_ok=True, parents=True)
        path.touch()
    (folder / "self").symlink_to(".")
    (folder / "north" / "up").symlink_to("..")
    (folder / "far").symlink_to("../far")
    (tmp_path / "far" / "back").symlink_to("../videos")
    tasks = find_videos([f"{folder}/**/*.mp4"], output=str(tmp_path / "out"))
    assert [task.results for task in tasks] == [f"{x}.mp4.json" for x in ("a", "far/c", "north/b")]


@pytest.mark.parametrize("pattern", ["**", "**/*.mp4", "*/**/*.mp4", "n*/**", "**/north/**"])
def test_any_folders_are_those_of_glob(videos, monkeypatch, pattern):
    write_video(videos / "north" / "[1]" / "deep" / "b.mp4")
    write_video(videos / ".hidden" / "c.mp4")
    for prefix in ("", f"{videos}/"):
        monkeypatch.chdir(videos)
        found = glob.glob(prefix + pattern, recursive=True)
        wanted = {os.path.abspath(path) for path in found if os.path.isfile(path)}
        tasks = find_videos([prefix + pattern], output="out")
        assert {os.path.abspath(task.source) for task in tasks} == wanted


def test_a_name_is_of_a_file_or_a_folder(tmp_path):
    for path in ("clip", "clip.json/a"):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "0.png").touch()
    with pytest.raises(ValueError, match=r"would be the file clip.json.* an --output each"):
        find_videos([f"{tmp_path}/**/clip", f"{tmp_path}/**/a"], output=str(tmp_path / "out"))


def test_results_may_lie_beside_their_videos(run, videos, counted):
    for _ in range(2):
        code, summary = run("--input", f"{videos}/**", output=videos)
        assert code == 0 and summary["videos"] == 3
    assert len(counted) == 3 and (videos / "north" / "a.mp4.json").exists()


def test_one_name_for_two_videos_is_refused(videos):
    files = [str(videos / "a.mp4"), str(videos / "north" / "a.mp4")]
    with pytest.raises(ValueError, match=r"both have their results in a.mp4.json. Give --root"):
        find_videos(files, output="x")
    tasks = find_videos(files, output="x", root=str(videos))
    assert [task.results for task in tasks] == ["a.mp4.json", "north/a.mp4.json"]
    with pytest.raises(ValueError, match="does not lie below --root"):
        find_videos(files, output="x", root=str(videos / "north"))
    with pytest.raises(ValueError, match="a name for the batch itself"):
        (videos / "summary").mkdir()
        (videos / "summary" / "0.png").touch()
        find_videos([str(videos / "summary")], output="x")


def test_what_cannot_start_says_why(run, videos, tmp_path):
    assert "finds no video" in run("--input", f"{videos}/*.mkv")[0]
    (tmp_path / "file").touch()
    assert (
        "is a file; expected the name of a folder"
        in run("--input", videos / "a.mp4", output=tmp_path / "file")[0]
    )
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.mp4.json").write_text("mine")
    assert "is not of this batch" in run("--input", videos / "a.mp4")[0]
    assert (tmp_path / "results" / "a.mp4.json").read_text() == "mine"
    run("--input", videos / "z.mp4")
    code, _ = run("--input", videos / "north" / "a.mp4", "--root", videos / "north")
    assert "is not of this batch" in code


def test_results_of_another_video_are_kept(run, videos):
    run("--input", videos / "a.mp4")
    code, _ = run("--input", videos / "north" / "a.mp4")
    assert "has the results of" in code and "--root" in code


def test_one_program_at_a_time(run, videos, tmp_path):
    folder = BatchFolder(str(tmp_path / "results"))
    with folder.open({}, overwrite=False):
        assert "Another program writes" in run("--input", videos / "a.mp4")[0]


def test_a_full_disk_ends_the_batch(run, videos, monkeypatch, counted):
    def full(self, rows, seconds=None):
        raise ResultsWriteError("Cannot write the results: No space left on device")

    monkeypatch.setattr("blockcopy_d2.results.formats.ResultsFile.add", full)
    code, summary = run("--input", f"{videos}/**/*.mp4")
    assert "No space left" in code and len(counted) == 1 and summary["unfinished"] == 3


def test_a_disk_that_is_full_at_once_is_named(run, videos):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        code, _ = run("--input", videos / "a.mp4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "Cannot write" in code and "settings.json: File too large" in code
    assert run("--input", videos / "a.mp4")[0] == 0


@pytest.mark.parametrize("content", ["", "{}", "[1]"])
def test_a_damaged_record_is_of_a_video_to_run_again(run, videos, tmp_path, counted, content):
    run("--input", f"{videos}/*.mp4")
    (record, _) = (tmp_path / "results" / ".batch" / "records").rglob("*.json")
    record.write_text(content)
    code, summary = run("--input", f"{videos}/*.mp4")
    assert code == 0 and summary["done"] == 2 and len(counted) == 3
    settings = tmp_path / "results" / ".batch" / "settings.json"
    settings.write_text(content)
    assert "settings.json is damaged" in run("--input", f"{videos}/*.mp4")[0]
    code, summary = run("--input", f"{videos}/*.mp4", "--overwrite")
    assert code == 0 and summary["done"] == 2 and len(counted) == 5


def test_tracks_need_the_flag_and_the_package(run, videos, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackers", None)
    assert "blockcopy-d2[track]" in run("--input", videos / "a.mp4", "--track")[0]
    assert "add --track" in run("--input", videos / "a.mp4", "--format", "ytvis")[0]


@pytest.mark.parametrize("format", ["ytvis", "parquet"])
def test_tracks_are_in_every_format(run_model, videos, tmp_path, monkeypatch, format):
    pytest.importorskip("trackers")
    pytest.importorskip("pyarrow")
    monkeypatch.setattr("blockcopy_d2.results.tracking._CERTAIN", 0.05)
    code, summary = run_model("--input", videos / "a.mp4", "--track", "--format", format)
    assert code == 0 and summary["rows"] > 0
    (name,) = set(visible(tmp_path / "results")) - {"summary.json"}
    if format == "ytvis":
        tracks = json.loads((tmp_path / "results" / name).read_text())
        assert name == "a.mp4.ytvis.json" and tracks
        assert all(len(track["segmentations"]) == FRAMES for track in tracks)
        return
    from pyarrow import parquet

    table = parquet.read_table(tmp_path / "results" / name).to_pydict()
    assert set(table["frame"]) == set(range(FRAMES))
    found = [x for x, frame in zip(table["track_id"], table["frame"]) if frame]
    assert any(x is not None for x in found)


@pytest.mark.slow
def test_a_killed_program_goes_on(run, weights, tmp_path):
    for number in range(3):
        write_video(tmp_path / "videos" / f"{number}.mp4", frames=30)
    results = tmp_path / "results"
    command = [sys.executable, "-m", "blockcopy_d2.batch", "--config-file", CONFIG, "--output"]
    command += [str(results), "--input", f"{tmp_path}/videos/*.mp4", "--opts"]
    program = subprocess.Popen([*command, *small_model_opts(weights)], cwd=ROOT)
    try:
        while not (results / "0.mp4.json").exists() and program.poll() is None:
            time.sleep(0.02)
    finally:
        program.kill()
        program.wait()
    done = {path: path.stat().st_mtime_ns for path in results.glob("*.mp4.json")}
    assert 1 <= len(done) < 3
    assert all(len(json.loads(path.read_text())) > 30 for path in done)
    code, summary = run("--input", f"{tmp_path}/videos/*.mp4")
    assert code == 0 and summary["done"] == 3
    assert done.items() <= {p: p.stat().st_mtime_ns for p in results.glob("*.mp4.json")}.items()


@pytest.mark.parametrize(
    "arguments, module, extra",
    [(["--decoder", "torchcodec"], "torchcodec", "gpu-decode"), (["--ray", "local"], "ray", "ray")],
)
def test_what_is_missing_is_named_before_anything_runs(
    run, videos, monkeypatch, arguments, module, extra
):
    monkeypatch.setitem(sys.modules, module, None)
    code, summary = run("--input", videos / "a.mp4", *arguments)
    assert f"pip install 'blockcopy-d2[{extra}]'" in code and summary is None


def test_sharing_a_policy_needs_learning_and_ray(run, videos):
    code, _ = run("--input", videos / "a.mp4", "--share-policy", "2")
    assert "--share-policy needs --ray and --keep-learning" in code
