"""The wheel is complete: it works from another folder, without the clone."""

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Runs where only the unpacked wheel can be found. argv: the unpacked wheel.
USE_THE_WHEEL = """
import sys
sys.path.insert(0, sys.argv[1])

import blockcopy_d2
from blockcopy_d2 import add_blockcopy_config
from blockcopy_d2.resources import config_path, shipped_configs, shipped_folder
from detectron2.config import get_cfg
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.utils.file_io import PathManager

assert blockcopy_d2.__file__.startswith(sys.argv[1]), blockcopy_d2.__file__
for name in shipped_configs():
    path = config_path(name)
    assert path.startswith(sys.argv[1]), path
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_blockcopy_config(cfg)
    cfg.merge_from_file(path)
    print("config", name)
for weights in sorted(shipped_folder("weights").glob("*.pth")):
    assert PathManager.get_local_path("blockcopy://" + weights.name).startswith(sys.argv[1])
    print("weights", weights.name)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The folder of an unpacked wheel, built from a copy so that the checkout stays as it is."""
    clone = tmp_path_factory.mktemp("clone")
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    for name in ("blockcopy_d2", "configs", "weights"):
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, clone / name, ignore=ignore)
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "-w", str(folder), str(clone)], capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    unpacked = folder / "unpacked"
    zipfile.ZipFile(built).extractall(unpacked)
    return unpacked


def shipped(folder, *suffixes):
    files = (path for path in folder.rglob("*") if path.suffix in suffixes)
    return {path.relative_to(folder).as_posix() for path in files}


def test_wheel_holds_every_module(wheel):
    wanted = shipped(ROOT / "blockcopy_d2", ".py")
    missing = wanted - shipped(wheel / "blockcopy_d2", ".py")
    assert wanted and not missing, "is an __init__.py missing beside it?"


@pytest.mark.parametrize("folder, suffix", [("configs", ".yaml"), ("weights", ".pth")])
def test_wheel_holds_every_data_file(wheel, folder, suffix):
    wanted = shipped(ROOT / folder, suffix)
    assert shipped(wheel / "blockcopy_d2" / folder, suffix) == wanted


def test_wheel_holds_the_template_of_the_report(wheel):
    wanted = shipped(ROOT / "blockcopy_d2", ".html")
    assert wanted and shipped(wheel / "blockcopy_d2", ".html") == wanted


def test_wheel_holds_nothing_else(wheel):
    tops = {path.name for path in wheel.iterdir()}
    assert len(tops) == 2 and "blockcopy_d2" in tops
    assert any(name.endswith(".dist-info") for name in tops)


def test_wheel_works_from_another_folder(wheel, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", USE_THE_WHEEL, str(wheel)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    lines = set(done.stdout.split("\n"))
    for name in shipped(ROOT / "configs", ".yaml"):
        assert f"config {name}" in lines
    for name in shipped(ROOT / "weights", ".pth"):
        assert f"weights {name}" in lines


def test_setup_needs_nothing_to_be_installed():
    tree = ast.parse((ROOT / "setup.py").read_text())
    plain = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not plain and imported == {"pathlib", "setuptools"}


def test_installation_replaces_no_detectron2(wheel):
    (metadata,) = wheel.glob("*.dist-info/METADATA")
    required = [
        line.removeprefix("Requires-Dist: ")
        for line in metadata.read_text().split("\n")
        if line.startswith("Requires-Dist: ")
    ]
    assert "torch>=2.6" in required
    assert not any("detectron2" in line or "==" in line.split(";")[0] for line in required)
