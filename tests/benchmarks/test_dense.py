"""
The dense rival computes the same as Detectron2, and is the fastest of the ways that were tried.
"""

import json
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from benchmarks import dense as dense_module
from benchmarks.dense import BestDense
from benchmarks.plots import plot_shares, plot_streams
from blockcopy_d2.config import base_config
from blockcopy_d2.engine.checkpoint import WeightsCheckpointer
from blockcopy_d2.engine.defaults import load_config
from blockcopy_d2.resources import config_path
from tests.small_model import CONFIG, small_model_opts

RESULTS = sorted((Path(dense_module.__file__).parent / "results").glob("h[12]00_*R50*.json"))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    opts = [*small_model_opts(tmp_path_factory.mktemp("weights")), "MODEL.DEVICE", DEVICE]
    cfg = base_config(load_config(config_path(CONFIG), opts))
    model = build_model(cfg).eval()
    WeightsCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(0)
    return [torch.randint(0, 256, (3, 90, 130), dtype=torch.uint8, device=DEVICE) for _ in range(3)]


@pytest.mark.parametrize("number", [1, 3])
def test_its_frames_are_those_of_detectron2(model, images, number, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    dense = BestDense(model, images[:number], torch.float32, modes=(), rounds=2)
    # Images other than those it was built with.
    batch = [image.flip(1) for image in images[:number]]
    for image, found in zip(batch, dense(batch), strict=True):
        with torch.no_grad():
            expected = model([{"image": image}])[0]["instances"]
        assert len(found) == len(expected) > 0 and found.image_size == (90, 130)
        assert torch.allclose(found.scores, expected.scores, atol=1e-4)
        assert torch.allclose(found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=2e-2)
        assert (found.pred_masks != expected.pred_masks).float().mean() < 1e-3
    measured = dense.measure(batch, rounds=2)
    assert dense.how == measured["how"] == "cuDNN"
    assert measured["frame_ms"] > measured["network_ms"] > 0
    with pytest.raises(ValueError):
        dense(batch[:-1])


def test_the_fastest_way_wins(model, images, monkeypatch, capsys):
    ways = {"cuDNN": 3.0, "torch.compile default": 1.0, "torch.compile max": 2.0}

    def interleaved(variants, **options):
        return {name: {"median": ways[name]} for name in variants}

    compiled = []
    monkeypatch.setattr(dense_module, "interleaved", interleaved)
    monkeypatch.setattr(torch, "compile", lambda f, **options: compiled.append(options) or f)
    dense = BestDense(model, images[:1], torch.float32, modes=("default", "max"))
    assert dense.how == "torch.compile default" and dense.network_ms == ways
    assert [options["mode"] for options in compiled] == ["default", "max"]
    # Code that does not compile as a whole, or recompiles too often, must not silently run eagerly.
    assert all(options["fullgraph"] and not options["dynamic"] for options in compiled)
    assert capsys.readouterr().out.count("torch.compile") == 2


def test_a_network_that_was_compiled_wrongly_is_refused(model, images, monkeypatch):
    def wrong(function, **options):
        def run(x):
            features, *others = function(x)
            return ({name: 1.05 * x for name, x in features.items()}, *others)

        return run

    monkeypatch.setattr(torch, "compile", wrong)
    with pytest.raises(AssertionError, match="torch.compile default: relative error 0.05"):
        BestDense(model, images[:1], torch.float32, rounds=2)


def test_a_model_without_static_heads_is_named(images):
    with pytest.raises(ValueError, match="Linear does not run as one CUDA graph"):
        BestDense(nn.Linear(1, 1), images[:1], torch.float32)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_published_ratios_are_against_the_best_dense_model(path):
    """And never against cuDNN's alone, which a compiled network beats."""
    found = json.loads(path.read_text())
    assert "best_dense_ms" not in path.read_text()
    for section in (found.get("network", {}), found.get("frame", {})):
        ratios = section.get("speedup_against_best_dense", {})
        if ratios:
            dense = section["best_dense"]
            assert dense["how"].startswith("torch.compile")
            ms = dense.get("frame_ms", dense["network_ms"])
            for share, ratio in ratios.items():
                assert ratio == pytest.approx(ms / section["blockcopy_ms"][share], abs=0.011)


def test_the_fastest_dense_network_is_the_one_that_a_share_is_compared_with(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: drawn.append(figure))
    dense = {"dense, cuDNN": 4.0, "dense, torch.compile": 2.0}
    plot_shares(tmp_path / "plot.png", {"0.5": 1.2, "1.0": 2.1}, dense, title="")
    lines = {line.get_label(): line.get_ydata()[-1] for line in drawn[0].axes[0].lines}
    assert lines == {**dense, "BlockCopy, with policy": 2.1, "best dense time x share": 2.0}
    plot_streams(tmp_path / "plot.png", {"blockcopy": {"1": {"0.3": {"frame_ms": 1.0}}}}, title="")
    assert [line.get_label() for line in drawn[1].axes[0].lines] == ["BlockCopy, 0.3 executed"]
