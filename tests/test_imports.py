"""
Imports point one way: kernels <- sparse <- motion <- policy <- modeling
<- {data, evaluation, visualization, results} <- engine <- {report, batch}, projects/, scripts.
"""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "blockcopy_d2"

# Modules of the package that each sub-package may import, besides its own. Those at the package's
# top, which know config keys and files only, are open to all but the engine; ``atomic``, which
# knows the standard library only, is open to that, too.
FOUNDATION = {"atomic", "config", "config_key", "resources"}
CORE = {"sparse", "motion", "policy", "modeling"}
ALLOWED = {
    "atomic": set(),
    "kernels": set(),
    "sparse": {"kernels", "atomic"},
    "motion": {"kernels", "sparse"} | FOUNDATION,
    "policy": {"kernels", "sparse", "motion"} | FOUNDATION,
    "modeling": {"kernels", "sparse", "motion", "policy", "networks"} | FOUNDATION,
    "data": CORE | {"kernels"} | FOUNDATION,
    "evaluation": CORE | {"data"} | FOUNDATION,
    "visualization": CORE | {"data"} | FOUNDATION,
    "results": CORE | {"data"} | FOUNDATION,
    "engine": CORE | {"kernels", "data", "evaluation", "visualization", "results"} | FOUNDATION,
    "report": CORE | {"data", "evaluation", "visualization", "engine"} | FOUNDATION,
    "batch": {"data", "results", "engine"},
    "checkpoint_conversion": {"networks"},
    "networks": {"config_key"},
    "config": {"config_key", "networks"},
    "config_key": set(),
    "quiet_imports": set(),
    "resources": set(),
    "__init__": FOUNDATION | {"quiet_imports"},
}

# The same within modeling. A task does not know how frames are run.
ROOMS = {
    "conversion": set(),
    "tasks": set(),
    "fixed_shape": set(),
    "running": {"fixed_shape"},
}


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def _walk(tree):
    """All nodes but what only type checkers run."""
    if isinstance(tree, ast.If) and ast.unparse(tree.test) == "TYPE_CHECKING":
        return
    yield tree
    for child in ast.iter_child_nodes(tree):
        yield from _walk(child)


def imported_names(source, module):
    """
    Yields the full dotted name of every import in ``source``, relative ones resolved, wherever in
    the file it stands. ``from a import b`` yields a.b: b may be a module.

    Args:
        source (str): the text of a module.
        module (Path): its path from the folder that holds the package.
    """
    package = module.parent.parts
    for node in _walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += (node.module,) if node.module else ()
            yield from (".".join((*base, alias.name)) for alias in node.names)


def imports_of(path):
    return set(imported_names(path.read_text(), path.relative_to(ROOT)))


def part(path):
    """The sub-package, or the module at the package's top, that ``path`` belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_imports_are_resolved():
    source = "import a.b\nfrom . import c\nfrom ..d import e\ndef f():\n    from g import h\n"
    found = imported_names(source, Path("blockcopy_d2/sparse/grid.py"))
    expected = {"a.b", "blockcopy_d2.sparse.c", "blockcopy_d2.d.e", "g.h"}
    assert set(found) == expected


def test_every_part_has_a_place_in_the_order():
    unknown = {part(path) for path in modules()} - set(ALLOWED)
    assert not unknown, f"not in DESIGN's order of imports: {sorted(unknown)}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    own = part(path)
    used = {
        name.split(".")[1]
        for name in imports_of(path)
        if name.startswith("blockcopy_d2.") and name.split(".")[1] not in ("__version__", own)
    }
    # Names re-exported at the top of the package, such as blockcopy_d2.add_blockcopy_config.
    used &= set(ALLOWED)
    assert used <= ALLOWED[own], f"{own} imports {sorted(used - ALLOWED[own])}"


@pytest.mark.parametrize("room", ROOMS)
def test_imports_between_the_rooms_of_modeling_point_one_way(room):
    paths = sorted((PACKAGE / "modeling" / room).rglob("*.py"))
    assert paths
    names = {name for path in paths for name in imports_of(path)}
    used = {name.split(".")[2] for name in names if name.startswith("blockcopy_d2.modeling.")}
    assert used <= ROOMS[room] | {room}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_package_stands_alone(path):
    tops = {name.split(".")[0] for name in imports_of(path)}
    assert not tops & {"projects", "demo", "train_net", "tests", "benchmarks"}
    if part(path) in ("kernels", "sparse"):
        assert not tops & {"detectron2", "fvcore", "iopath"}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_kernels_of_the_engine_are_its_own(path):
    """Others find the plumbing of kernels in blockcopy_d2.kernels; tuning alone searches there."""
    if part(path) != "sparse" and path.name != "tune_kernels.py":
        assert not [name for name in imports_of(path) if ".sparse.triton_ops" in name]


def test_no_modules_import_each_other():
    """Not in a circle of any length, nor within functions."""
    names = {}
    for path in modules():
        *parents, name = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parents if name == "__init__" else [*parents, name])] = path
    graph = {}
    for module, path in names.items():
        # ``from a import b`` needs module a.b, or module a where b is a name in it.
        found = (x if x in names else x.rpartition(".")[0] for x in imports_of(path))
        graph[module] = {x for x in found if x in names and x != module}
    graphlib.TopologicalSorter(graph).prepare()


def test_training_and_scoring_need_no_pyav():
    """Only modules that read or write videos import PyAV: machines that train may not have it."""
    code = (
        "import sys; sys.modules['av'] = None\n"
        "import blockcopy_d2.data, blockcopy_d2.engine, blockcopy_d2.evaluation, train_net\n"
        "import benchmarks.frame, benchmarks.network"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
