"""The tables of operators agree: every backend runs, and a case tests, each operator of a rule."""

import pytest
import torch

from blockcopy_d2.sparse import BlockGrid, BlockSparseModule, fusion, program, rules, torch_ops
from blockcopy_d2.sparse.program import Densified, Operator
from tests.sparse.test_operators import CASES, Function


def classes(module, base=object):
    values = vars(module).values()
    return {value for value in values if isinstance(value, type) and issubclass(value, base)}


OPERATORS = classes(program, Operator) - {Operator}
# Operators that lowering fuses from several, for Triton's kernels only.
FUSED = {value for value in classes(fusion) if value.__module__ == fusion.__name__}


def test_rules_make_every_operator():
    """All operators but the one for calls without a rule."""
    assert classes(rules, Operator) == OPERATORS - {Densified}


def test_torch_runs_every_operator():
    assert torch_ops._OPERATORS.keys() == OPERATORS


def test_triton_binds_every_operator():
    pytest.importorskip("triton")
    from blockcopy_d2.sparse.triton_binding import BINDERS

    assert {cls.__name__ for cls in FUSED} >= {"Bottleneck", "ConvolutionPair"}
    assert BINDERS.keys() == OPERATORS | FUSED


def test_triton_computes_every_activation_that_is_fused():
    pytest.importorskip("triton")
    from blockcopy_d2.sparse.triton_ops.activation import SUPPORTED

    assert rules._ACTIVATIONS.keys() == SUPPORTED


@pytest.fixture(scope="module")
def programs():
    """The program of every case, and names of the rules that were asked."""
    asked = set()

    def watched(name, rule):
        def ask(planner, call):
            asked.add(name)
            return rule(planner, call)

        return ask

    size = (64, 96)
    grid = BlockGrid.full(block_size=32, image_size=size)
    with pytest.MonkeyPatch.context() as patch:
        for name, rule in rules._RULES.items():
            patch.setitem(rules._RULES, name, watched(name, rule))
        found = [
            BlockSparseModule(Function(case).eval()).program((torch.zeros(1, 3, *size),), {}, grid)
            for case in CASES.values()
        ]
    return found, asked


def test_a_case_asks_every_rule(programs):
    _, asked = programs
    assert rules._RULES.keys() == asked


def test_a_case_runs_every_operator(programs):
    found, _ = programs
    assert {type(operator) for each in found for operator in each.operators} == OPERATORS
