"""The tuning command finds the launches of a network. (Measuring needs a GPU.)"""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from blockcopy_d2.engine.tune_kernels import argument_parser, launches  # noqa: E402
from blockcopy_d2.sparse import triton_execution  # noqa: E402
from blockcopy_d2.sparse.triton_ops import search  # noqa: E402
from blockcopy_d2.sparse.triton_ops.box_conv import BoxConvolutionLaunch  # noqa: E402
from blockcopy_d2.sparse.triton_ops.conv import ConvolutionLaunch  # noqa: E402


def test_launches_of_a_zoo_config(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(triton_execution.Bound, "run", lambda self, grid, tensors: None)
    args = argument_parser().parse_args([])
    found = launches(args.config_file, (128, 256), 128, torch.float32, opts=args.opts, device="cpu")
    assert {type(launch) for launch in found} == {ConvolutionLaunch, BoxConvolutionLaunch}
    kernels = {launch.shape.kernel for launch in found}
    assert kernels == {(7, 7), (3, 3), (1, 1)}
    levels = [len(launch.levels) for launch in found]
    assert levels.count(5) == 2 and levels.count(4) == 1  # RPN head; output of the FPN


@pytest.mark.parametrize("content", ["notes", "[]", '{"rows": []}', '{"entries": 3}'])
def test_a_file_that_is_no_table_is_left_alone(tmp_path, content):
    path = tmp_path / "mine.json"
    path.write_text(content)
    device = SimpleNamespace(name="a GPU", capability=(9, 0))
    with pytest.raises(ValueError, match="mine.json exists and is not a table of kernels"):
        search.save({"layer": 1}, device, path)
    assert path.read_text() == content


def test_a_table_keeps_its_entries(tmp_path):
    device = SimpleNamespace(name="a GPU", capability=(9, 0))
    for entry in ("b", "a"):
        search.save({entry: 1}, device, tmp_path / "table.json")
    assert search.read_entries(tmp_path / "table.json") == {"a": 1, "b": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]
