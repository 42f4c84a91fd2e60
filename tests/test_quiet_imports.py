"""The output of a command begins with its own, not with warnings of libraries."""

import ast
import importlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from blockcopy_d2 import quiet_imports

ROOT = Path(__file__).resolve().parents[1]


def scripts():
    """Yields the commands outside the package, with the names that each of them imports first."""
    for path in (*ROOT.glob("*.py"), *(ROOT / "tools").glob("*"), *(ROOT / "projects").rglob("*")):
        if path.suffix == ".py" and "if __name__ ==" in (source := path.read_text()):
            nodes = ast.walk(ast.parse(source))
            imports = [x for x in nodes if isinstance(x, ast.Import | ast.ImportFrom)]
            if "blockcopy_d2" in source:
                yield path.name, [name.name for name in imports[0].names]


def test_every_script_imports_it_first():
    firsts = dict(scripts())
    assert {"demo.py", "run_protocol.py", "convert_checkpoint.py"} <= firsts.keys()
    assert set(map(tuple, firsts.values())) == {("blockcopy_d2.quiet_imports",)}
    assert "import blockcopy_d2.quiet_imports" in (ROOT / "benchmarks/__init__.py").read_text()


@pytest.mark.parametrize("command", (["train_net.py"], ["-m", "blockcopy_d2.data.streetclips"]))
def test_help_stands_alone(command):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONWARNINGS", None)
    done = subprocess.run(
        [sys.executable, *command, "--help"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("usage: ") and done.stderr == ""


@pytest.mark.parametrize(
    "message, category",
    [
        ("`torch.jit.script` is deprecated", FutureWarning),
        ("pkg_resources is deprecated", UserWarning),
    ],
)
def test_warnings_of_others_are_shown(message, category):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        importlib.reload(quiet_imports)
        with pytest.warns(category, match=message):
            warnings.warn(message, category, stacklevel=1)
