"""tools/check_model_zoo.py: what it finds, and that docs/networks.md shows it."""

import importlib.util
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PROPOSALS = "COCO-Detection/rpn_R_50_FPN_1x.yaml"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location(
        "check_model_zoo", ROOT / "tools/check_model_zoo.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def documented(tool):
    text = (ROOT / "docs/networks.md").read_text()
    begin, end = tool.MARKS
    return text.split(begin)[1].split(end)[0].strip()


def test_a_model_that_holds_and_one_that_does_not(tool, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        tool.main(["--only", PROPOSALS])
    assert ended.value.code == 0
    printed = capsys.readouterr().out.splitlines()
    assert "| ProposalNetwork |" in printed[-1] and "FPN, StandardRPNHead" in printed[-1]

    class Off(tool.MaskedDenseOracle):
        def __call__(self, args, grid):
            return [
                x + 0.01 * x.abs().max()
                for x in torch.utils._pytree.tree_leaves(super().__call__(args, grid))
            ]

    monkeypatch.setattr(tool, "MaskedDenseOracle", Off)
    with pytest.raises(SystemExit) as ended:
        tool.main(["--only", PROPOSALS])
    assert ended.value.code == 1 and "DIFFERS" in capsys.readouterr().err


def test_the_table_has_every_config_once(tool):
    table = documented(tool)
    assert {path: table.count(f"`{path}`") for path in tool.zoo()} == dict.fromkeys(tool.zoo(), 1)
    assert len(tool.zoo()) > 90


@pytest.mark.slow
def test_the_whole_zoo(tool):
    found = tool.check_zoo(tool.zoo())
    assert [path for path, one in found.items() if not one.passed] == []
    if importlib.util.find_spec("detectron2._C"):
        return  # It builds models that the table says are not built.
    # But for the differences, which are those of rounding.
    rows = (
        [line.split("|")[:6] for line in x.splitlines()]
        for x in (tool.table(found), documented(tool))
    )
    one, other = rows
    assert one == other
