"""Every walk of docs/extending.md, run as it is written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY

from blockcopy_d2.modeling import TASK_REGISTRY
from blockcopy_d2.policy import POLICY_REGISTRY
from blockcopy_d2.sparse import rules

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
SECTIONS = {section.splitlines()[0]: section for section in PAGE.split("\n## ")[1:]}
ROOMS = SECTIONS.pop("The package, room by room")
WALKS = {
    title: re.findall(r"^```python\n(.*?)^```", section, re.S | re.M)
    for title, section in SECTIONS.items()
}


@pytest.fixture
def registries(monkeypatch):
    """Names that a walk has added to registries, by kind; they are gone after it."""
    tables = {
        "policy": POLICY_REGISTRY._obj_map,
        "task": TASK_REGISTRY._obj_map,
        "backbone": BACKBONE_REGISTRY._obj_map,
        "rule": rules._RULES,
        "data set": DatasetCatalog.data,
        "metadata": MetadataCatalog.data,
    }
    before = {kind: dict(table) for kind, table in tables.items()}
    yield lambda: {kind: set(table) - set(before[kind]) for kind, table in tables.items()}
    for kind, table in tables.items():
        for name in set(table) - set(before[kind]):
            table.pop(name)


def test_every_kind_has_a_walk():
    assert list(WALKS) == [
        "A policy",
        "An information gain",
        "A network",
        "A data set",
        "An operator",
    ]
    assert all(len(blocks) == 1 for blocks in WALKS.values())


def test_every_room_is_listed():
    inits = [*ROOT.glob("blockcopy_d2/*/__init__.py"), *ROOT.glob("blockcopy_d2/*/*/__init__.py")]
    listed = re.findall(r"(\w+)/(?=\s)", ROOMS.split("blockcopy_d2/\n")[1])
    assert sorted(listed) == sorted(path.parent.name for path in inits)


@pytest.mark.parametrize(
    "walk, kind, name",
    [
        ("A policy", "policy", "Checkerboard"),
        ("An information gain", "task", "TotalVariation"),
        ("A network", "backbone", "TwoConvolutions"),
        ("A data set", "data set", "squares_val"),
        ("An operator", "rule", "pixel_shuffle"),
    ],
)
def test_a_walk(walk, kind, name, registries, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    torch.manual_seed(0)
    (code,) = WALKS[walk]
    exec(compile(code, f"docs/extending.md: {walk}", "exec"), {"__name__": "__main__"})
    assert registries()[kind] == {name}


@pytest.mark.parametrize(
    "first", ["detectron2", pytest.param("blockcopy_d2", marks=pytest.mark.slow)]
)
def test_a_file_of_ones_own_is_seen_by_the_scripts(first, tmp_path):
    (code,) = WALKS["A policy"]
    assert "DETECTRON2_ENV_MODULE=checkerboard.py" in PAGE
    definition = code[: code.index("\nnetwork = ")]
    file = tmp_path / "checkerboard.py"
    file.write_text(f"{definition}\n\ndef setup_environment():\n    pass\n")
    script = f"""
import sys, {first}
from blockcopy_d2.engine import load_config
load_config(opts=sys.argv[1:])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, "MODEL.BLOCKCOPY.POLICY.NAME", "Checkerboard"],
        cwd=ROOT,
        env={**os.environ, "DETECTRON2_ENV_MODULE": str(file)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
