"""The dense rival on a CPU computes the same as Detectron2."""

import pytest
import torch

from benchmarks import cpu
from blockcopy_d2.engine.defaults import load_config
from blockcopy_d2.resources import config_path
from tests.small_model import CONFIG, small_model_opts


def test_the_compiled_model_is_detectron2s(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module, **_: (compiled.append(module), module)[1])
    cfg = load_config(config_path(CONFIG), small_model_opts(tmp_path))
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 96, 160), generator=generator, dtype=torch.uint8)
    inputs = {"image": image, "height": 96, "width": 160}
    (expected,), (found,) = cpu.Stock(cfg)(inputs), cpu.Compiled(cfg)(inputs)
    expected, found = expected["instances"], found["instances"]
    assert len(found) == len(expected) > 0
    assert found.scores.tolist() == pytest.approx(expected.scores.tolist(), abs=1e-4)
    assert torch.allclose(found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-2)
    assert [type(module).__name__ for module in compiled] == ["FPN", "StandardRPNHead"]
    assert all(layer.norm is None for layer in compiled[0].modules() if hasattr(layer, "norm"))
