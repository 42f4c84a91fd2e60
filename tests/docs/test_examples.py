"""The examples run as they are."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blockcopy_d2.engine.acceleration import load_video_config
from tests.small_model import CONFIG, small_model_opts

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path):
    """A folder of three frames, in which a square moves."""
    frames = tmp_path / "frames"
    frames.mkdir()
    for index in range(3):
        picture = np.full((96, 160, 3), 60, np.uint8)
        picture[30:60, 20 + 8 * index : 50 + 8 * index] = 200
        Image.fromarray(picture).save(frames / f"{index}.png")
    return frames


def test_minimal(folder, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("minimal", EXAMPLES / "minimal.py")
    minimal = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(minimal)
    opts = small_model_opts(tmp_path)
    monkeypatch.setattr(
        minimal,
        "load_video_config",
        lambda name, **options: load_video_config(CONFIG, opts, **options),
    )
    plot = tmp_path / "executed.png"
    command = ["minimal.py", str(folder), "--target", "0.5", "--output", str(plot)]
    monkeypatch.setattr("sys.argv", command)
    minimal.main()
    shown = capsys.readouterr().out
    assert shown.count("of the blocks executed") == 3 and "frame 0" in shown
    assert "100%" in shown.splitlines()[0]
    with Image.open(plot) as picture:
        assert min(picture.size) > 100


def test_the_notebook_runs(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(EXAMPLES / "quick_start.ipynb", as_version=4)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    printed = "".join(output.get("text", "") for cell in cells for output in cell.outputs)
    pictures = [
        output for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})
    ]
    assert "of the blocks" in printed and "AP50" in printed
    assert len(pictures) == 2
