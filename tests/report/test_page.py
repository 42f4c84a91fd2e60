import copy
import functools
import http.server
import json
import math
import re
import shutil
import subprocess
import threading
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from blockcopy_d2.data import VideoFrames
from blockcopy_d2.engine import VideoPredictor
from blockcopy_d2.report import record_video, render_page
from blockcopy_d2.report.__main__ import get_parser, main
from blockcopy_d2.report.clip import ComparisonClip, heat_map
from blockcopy_d2.resources import config_path
from blockcopy_d2.sparse import BlockGrid
from tests.small_model import CONFIG, small_model_opts, write_lazy_config

SECTIONS = ("summary", "clip", "time", "heat", "sweep", "macs", "environment")
VOID = {"meta", "img", "br", "link", "input", "hr"}
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


class Page(HTMLParser):
    """The texts, cells and references of a page; its elements must be closed in order."""

    def __init__(self, html):
        super().__init__()
        self.text, self.rows, self.references, self.ids = "", [], [], set()
        self.tags, self._open = [], []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.ids.add(attributes.get("id"))
        names = ("src", "href", "xlink:href", "poster")
        self.references += [attributes[name] for name in names if name in attributes]
        self.references += re.findall(
            r"url\(['\"]?([^)'\"]*)", " ".join(map(str, attributes.values()))
        )
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] in ("style", "script"):
            if self._open[-1] == "script":
                self.data = json.loads(data)
            return
        self.text += data
        if any(tag in self._open for tag in ("td", "th")):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def recorded(report_folder, small_config):
    video = VideoFrames(report_folder / "clip.mp4")
    path = report_folder / "both.mp4"
    with ComparisonClip(path, video.fps, threshold=0.05) as clip:
        predictor = VideoPredictor(small_config())
        recording = record_video(
            predictor, video, targets=(0.3, 0.7), score_threshold=0.05, draw=clip.add
        )
    html = render_page(
        recording,
        title="A <clip>",
        environment={"date": "today"},
        clip=path.read_bytes(),
        poster=clip.poster,
        clip_frames=clip.frames,
    )
    return recording, html


@pytest.fixture(scope="module")
def page(recorded):
    return Page(recorded[1])


def test_page_holds_every_section(page):
    assert set(SECTIONS) <= page.ids
    assert page.tags.count("video") == 1 and page.tags.count("svg") == 5
    assert "A <clip>" in page.text and "today" in page.text


def test_page_refers_to_nothing_outside(recorded, page):
    assert page.references
    assert all(reference.startswith(("data:", "#")) for reference in page.references)
    assert "@import" not in recorded[1] and "link" not in page.tags


def test_numbers_are_those_recorded(recorded, page):
    recording, _ = recorded
    text = re.sub(r"\s+", " ", page.text)
    assert f"{recording.speed_up:.2f}×" in text
    assert f"{100 * recording.executed:.1f} %" in text
    assert f"{recording.dense_milliseconds:,.0f} ms" in text
    assert f"{recording.main.scores['AP50']:.1f} AP50 and" in text
    assert f"{recording.frames} frames." in text
    cells = {row[0].split()[0]: row for row in page.rows}
    for run in recording.runs:
        row = cells[f"{run.target:g}"]
        assert row[1] == f"{100 * sum(run.executed[1:]) / 5:.1f} %"
        assert row[2] == f"{1000 * sum(run.seconds[1:]) / 5:,.0f}"
        assert row[4:] == [f"{run.scores[name]:.1f}" for name in ("AP50", "AP")]
    for stage in ("backbone", "FPN", "RPN", "RoI", "policy"):
        name = "RoI heads" if stage == "RoI" else stage
        macs = sum(recording.main.macs[name][1:]) / 5
        assert cells[stage][2] == f"{macs / 1e9:.2f}"
    assert page.data["by_frame"]["executed"] == pytest.approx(recording.main.executed)
    assert page.data["speed_up"] == pytest.approx(recording.speed_up, rel=1e-4)


def test_nothing_is_recommended_where_dense_has_no_output(recorded):
    recording = copy.deepcopy(recorded[0])
    for run in recording.runs:
        run.scores = dict.fromkeys(run.scores, math.nan)
    text = " ".join(Page(render_page(recording, title="A", environment={})).text.split())
    assert "nothing above the confidence threshold" in text and "no target to recommend" in text
    assert "run this model densely" not in text and "agrees with the dense" not in text


def test_plots_follow_the_colours_of_the_page(recorded):
    _, html = recorded
    assert "var(--series-1)" in html and "#0102" not in html and "#0202" not in html


def test_heat_map_shows_where_the_policy_looks():
    image = np.full((60, 100, 3), 128, dtype=np.uint8)
    share = np.zeros((2, 4))
    share[0, 3] = 1
    heat = heat_map(image, share, side=32).astype(int)
    assert heat.shape == image.shape
    # Only four columns of the last block are inside the image.
    assert heat[10, 98].sum() > heat[10, 90].sum() + 100
    assert np.array_equal(heat[10, 90], heat[40, 98])


def test_a_clip_stops_growing(tmp_path, monkeypatch):
    clip = ComparisonClip(tmp_path / "clip.mp4", 12, max_bytes=-1)
    monkeypatch.setattr(clip, "_draw", lambda *_, **__: np.zeros((64, 96, 3), dtype=np.uint8))
    grid = BlockGrid.full(block_size=64, image_size=(64, 96))
    result = SimpleNamespace(executed=1, grid=grid)
    with clip:
        for _ in range(3):
            clip.add(None, {}, 0.1, result, 0.1, 1.0)
    assert clip.frames == 1


def test_command_line(report_folder, monkeypatch, tmp_path):
    output = tmp_path / "page.html"
    arguments = ["--config-file", CONFIG, "--video-input", str(report_folder / "clip.mp4")]
    arguments += ["--output", str(output), "--max-frames", "2", "--targets", "--target", "0.4"]
    monkeypatch.setattr(
        "sys.argv", ["report", *arguments, "--opts", *small_model_opts(report_folder)]
    )
    main()
    page = Page(output.read_text())
    assert "clip" in page.text and "--max-frames 2" in page.text
    assert "executed (τ 0.4)" in re.sub(r"\s+", " ", page.text)


def test_secrets_of_an_address_are_in_no_page_and_no_log(
    report_folder, monkeypatch, tmp_path, capfd, caplog
):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(report_folder))
    monkeypatch.setattr(handler.func, "log_message", lambda *args: None)
    output = tmp_path / "page.html"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"u:s3cret@127.0.0.1:{server.server_port}/clip.mp4?token=s3cret"
        arguments = ["--config-file", CONFIG, f"--video-input=http://{address}"]
        arguments += ["--output", str(output), "--max-frames", "2", "--targets"]
        monkeypatch.setattr(
            "sys.argv", ["report", *arguments, "--opts", *small_model_opts(report_folder)]
        )
        main()
        server.shutdown()
    html = output.read_text()
    assert "http://***@127.0.0.1" in Page(html).text and "<title>" in html
    printed = caplog.text + "".join(capfd.readouterr())
    assert "clip: " in printed
    assert "s3cret" not in html and "s3cret" not in printed


def test_a_lazy_config_has_a_report(report_folder, monkeypatch, tmp_path):
    config, opts = write_lazy_config(tmp_path)
    output = tmp_path / "page.html"
    arguments = ["--config-file", config, "--video-input", str(report_folder / "clip.mp4")]
    arguments += ["--output", str(output), "--max-frames", "2", "--targets", "0.7"]
    arguments += ["--confidence-threshold", "0.01", "--target", "0.4", "--opts", *opts]
    monkeypatch.setattr("sys.argv", ["report", *arguments])
    main()
    page = Page(output.read_text())
    assert "executed (τ 0.4)" in re.sub(r"\s+", " ", page.text)
    cells = {row[0].split()[0]: row for row in page.rows}
    assert "0.7" in cells and "lazy_model.pth" in cells["config"][1]
    assert cells["policy"][1].startswith("ExpectedGain, blocks of 32 pixels")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"--video-input": "nowhere.mp4"}, "nowhere.mp4 does not exist"),
        ({"--video-input": __file__}, "cannot be read as a video"),
        ({"--output": "nowhere/report.html"}, "There is no folder"),
        ({"--output": "/"}, "/ is a folder; expected the name of a page"),
        ({"--config-file": "maskrcnn_blockcop.yaml"}, "Did you mean maskrcnn_blockcopy.yaml"),
    ],
)
def test_errors_name_what_is_wrong(report_folder, monkeypatch, changes, message):
    options = {"--video-input": str(report_folder / "clip.mp4"), "--output": "report.html"}
    arguments = [text for pair in {**options, **changes}.items() for text in pair]
    monkeypatch.setattr("sys.argv", ["report", *arguments])
    with pytest.raises(SystemExit, match=re.escape(message)):
        main()


@pytest.mark.parametrize(
    "options, message",
    [
        ("--video-input clip.mp4 --output clip.mp4", "clip.mp4 is the input clip.mp4"),
        ("--video-input clip.mp4 --output link.html", "link.html is the input clip.mp4"),
        ("--video-input frames --output frames/0.png", "lies in the folder of frames frames"),
        ("--video-input frames --output frames/page.html", "lies in the folder of frames frames"),
        ("--video-input clip.mp4 --output mine.yaml", "mine.yaml is the input mine.yaml"),
        ("--video-input clip.mp4 --output mine.pth", "mine.pth is the input mine.pth"),
        ("--video-input clip.mp4 --output policy.pth", "policy.pth is the input policy.pth"),
        ("--video-input old.html --output old.html", "old.html is the input old.html"),
        ("--video-input missing.mp4 --output old.html", "missing.mp4 does not exist"),
    ],
)
def test_no_file_is_lost(report_folder, monkeypatch, tmp_path, options, message):
    monkeypatch.chdir(tmp_path)
    shutil.copy(report_folder / "clip.mp4", tmp_path)
    shutil.copy(config_path(CONFIG), "mine.yaml")
    (tmp_path / "link.html").symlink_to("clip.mp4")
    (tmp_path / "frames").mkdir()
    Image.new("RGB", (96, 64)).save("frames/0.png")
    for name in ("mine.pth", "policy.pth", "old.html"):
        (tmp_path / name).write_text(name)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    opts = ["--opts", "MODEL.WEIGHTS", "mine.pth", "MODEL.BLOCKCOPY.POLICY.WEIGHTS", "policy.pth"]
    config = ["--config-file", "mine.yaml"] if "yaml" in options else ["--config-file", CONFIG]
    monkeypatch.setattr("sys.argv", ["report", *config, *options.split(), *opts])
    with pytest.raises(SystemExit, match=re.escape(message)):
        main()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("error", [RuntimeError("of the model"), MemoryError()])
def test_an_earlier_page_outlives_a_failure(report_folder, monkeypatch, tmp_path, error):
    page = tmp_path / "page.html"
    page.write_text("old")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr("blockcopy_d2.report.__main__.render_page", fail)
    arguments = ["--config-file", CONFIG, "--video-input", str(report_folder / "clip.mp4")]
    arguments += ["--output", str(page), "--max-frames", "1", "--targets"]
    monkeypatch.setattr(
        "sys.argv", ["report", *arguments, "--opts", *small_model_opts(report_folder)]
    )
    with pytest.raises(type(error)):
        main()
    assert page.read_text() == "old" and list(tmp_path.iterdir()) == [page]


def test_help_tells_every_option():
    text = get_parser().format_help()
    for option in ("--config-file", "--video-input", "--output", "--max-frames", "--targets"):
        assert option in text


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium or google-chrome")
def test_chromium_renders_the_page(recorded, tmp_path):
    page, picture = tmp_path / "page.html", tmp_path / "page.png"
    page.write_text(recorded[1])
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,2400"]
    command += ["--virtual-time-budget=2000", f"--screenshot={picture}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert picture.exists(), done.stderr
    shown = np.asarray(Image.open(picture).convert("RGB"))
    assert shown.shape == (2400, 1000, 3)
    # Text, plots and pictures down the whole page.
    for part in np.array_split(shown, 8):
        assert len(np.unique(part.reshape(-1, 3), axis=0)) > 20
