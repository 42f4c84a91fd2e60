"""
Every kernel follows one convention: a dispatch that asks where Triton runs, a launcher, a plain
reference, a test that compares the two, and one that compiles it. New kernels are found by
themselves: functions under ``@triton.jit`` whose names end in ``_kernel``.
"""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "blockcopy_d2"

# Plain counterparts whose names do not show that they are, by the kernels' module.
REFERENCES = {
    "blockcopy_d2.motion.triton_field": {"BlockMatching"},
    "blockcopy_d2.motion.triton_moving": {"move"},
    "blockcopy_d2.motion.triton_policy_maps": {"PolicyMotion", "move"},
    "blockcopy_d2.motion.triton_search": {"matching"},
    "blockcopy_d2.policy.fused.convolution": {"PolicyNetwork"},
    "blockcopy_d2.policy.fused.inputs": {"PolicyNetwork"},
    "blockcopy_d2.policy.fused.normalization": {"PolicyNetwork"},
}
# It reads a clock, so there is nothing to compare it with.
NOT_COMPARED = {"blockcopy_d2.kernels.clock"}
# Callers run with Triton only, or have asked before.
ASKED_BEFORE = {
    "blockcopy_d2.modeling.running.timing",
    "blockcopy_d2.motion.caches",
    "blockcopy_d2.sparse.grid",
}


def dotted(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text())


def is_jit(function):
    return any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list)


def functions_of(path):
    return [node for node in tree_of(path).body if isinstance(node, ast.FunctionDef)]


def kernels_of(path):
    return {f.name for f in functions_of(path) if is_jit(f) and f.name.endswith("_kernel")}


MODULES = {dotted(path): path for path in sorted(PACKAGE.rglob("*.py")) if kernels_of(path)}
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


@functools.cache
def imports_of(tree, package=""):
    """Name -> where it is imported from, dotted, relative imports resolved."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            found |= {alias.asname or alias.name: f"{base}.{alias.name}" for alias in node.names}
    return found


def names_in(node):
    return {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}


@functools.cache
def names_of_tests(tree):
    """For each test, the names that it and the helpers of its file use."""
    found = []
    functions = {node.name: names_in(node) for node in tree.body if hasattr(node, "name")}
    for name in functions:
        if name.startswith("test_"):
            used, waiting = set(), [name]
            while waiting:
                new = functions[waiting.pop()] - used
                used |= new
                waiting += new & functions.keys()
            found.append(used)
    return found


def compares(path, module):
    """Returns whether one of a file's tests uses a launcher of a module, and its reference."""
    tree = tree_of(path)
    imports = imports_of(tree)
    package = module.rpartition(".")[0]
    exports = imports_of(tree_of(MODULES[module].parent / "__init__.py"))
    own = {f"{package}.{name}" for name in exports}
    launchers = {
        name
        for name, origin in imports.items()
        if origin == module or origin.startswith(f"{module}.") or origin in own
    }
    if not launchers:
        return False
    plain = {name for name in imports if "reference" in imports[name]}
    plain |= REFERENCES.get(module, set()) & imports.keys()
    return any(used & launchers and used & plain for used in names_of_tests(tree))


def test_kernels_are_found():
    assert {"pool_kernel", "draw_kernel", "move_kernel"} <= set().union(
        *map(kernels_of, MODULES.values())
    )


@pytest.mark.parametrize("module", sorted(MODULES.keys() - NOT_COMPARED))
def test_a_test_compares_each_kernel_with_its_reference(module):
    assert [path.name for path in TESTS if compares(path, module)], (
        f"No test uses a launcher of {module} and a reference, a function named *_reference: write "
        "one, or name the plain counterpart in REFERENCES."
    )


@functools.cache
def compiled_names():
    """The texts in tests that compile kernels for a GPU."""
    return {
        node.value
        for path in TESTS
        if "compiled_by" in imports_of(tree_of(path))
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


@pytest.mark.parametrize("module", sorted(MODULES))
def test_each_kernel_is_compiled_by_a_test(module):
    missing = kernels_of(MODULES[module]) - compiled_names()
    assert not missing, f"No test that compiles kernels for a GPU expects {sorted(missing)}."


def test_dispatch_asks_where_triton_runs():
    """Functions that import kernels when called check first that they run, in one way."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for function in ast.walk(tree_of(path)):
            if isinstance(function, ast.FunctionDef) and dotted(path) not in ASKED_BEFORE:
                lazy = imports_of(function, dotted(path).rpartition(".")[0])
                if any(origin.rpartition(".")[0] in MODULES for origin in lazy.values()):
                    asks = "triton_runs_on" in names_in(function)
                    assert asks, f"{dotted(path)}.{function.name}() does not ask triton_runs_on()"


def test_sizes_that_make_no_variants_are_in_no_tuple():
    """Triton specializes numbers in tuples, even of parameters that it is told not to."""
    for module, path in MODULES.items():
        for function in filter(is_jit, functions_of(path)):
            kept = " ".join(map(ast.unparse, function.decorator_list))
            taken_apart = {
                node.value.id
                for node in ast.walk(function)
                if isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Tuple)
                and isinstance(node.value, ast.Name)
            }
            assert not [name for name in taken_apart if repr(name) in kept], (module, function.name)


def test_launches_are_bound_in_one_way():
    """By kernels.launch.Launch: no other class of launches holds a grid and launches by itself."""
    for path in MODULES.values():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Launch"):
                indexed = [n.value for n in ast.walk(node) if isinstance(n, ast.Subscript)]
                assert not {ast.unparse(value) for value in indexed} & kernels_of(path), node.name
