"""
Wheel and source distribution are complete: they work from another folder, without the clone.
Importing the package is quick.
"""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import blockcopy_d2

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

# Prints the version, then what is required and not there.
CHECK_REQUIREMENTS = """
from importlib.metadata import distribution
from packaging.requirements import Requirement

package = distribution("blockcopy-d2")
print(package.version)
for requirement in map(Requirement, package.requires):
    if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
        if not requirement.specifier.contains(distribution(requirement.name).version):
            print(requirement)
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of what is packed, so that the checkout stays as it is."""
    clone = tmp_path_factory.mktemp("clone")
    for name in ("setup.py", "pyproject.toml", "LICENSE", "MANIFEST.in", "README.md"):
        shutil.copy(ROOT / name, clone)
    for name in ("demo.py", "train_net.py"):
        shutil.copy(ROOT / name, clone)
    for name in ("blockcopy_d2", "configs", "weights"):
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, clone / name, ignore=ignore)
    return clone


@pytest.fixture(scope="module")
def wheel(clone, tmp_path_factory):
    """The folder of an unpacked wheel, with the wheel beside it."""
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


def test_the_version_stands_in_one_place(wheel):
    (metadata,) = wheel.glob("*.dist-info/METADATA")
    assert f"\nVersion: {blockcopy_d2.__version__}\n" in metadata.read_text()
    line = re.compile(r"version\w*\s*[=:]\s*[\"']\d", re.IGNORECASE)
    files = [ROOT / "setup.py", ROOT / "pyproject.toml", *(ROOT / "blockcopy_d2").rglob("*.py")]
    found = [path.name for path in files if line.search(path.read_text())]
    assert found == ["__init__.py"]


def test_changes_and_citation_are_of_this_version():
    changes = (ROOT / "CHANGELOG.md").read_text()
    releases = re.findall(r"^## (\d\S*) - \d{4}-\d\d-\d\d$", changes, re.MULTILINE)
    assert releases[0] == blockcopy_d2.__version__
    assert f"\nversion: {blockcopy_d2.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_every_extra_is_there(wheel):
    (folder,) = wheel.glob("*.dist-info")
    extras = importlib.metadata.Distribution.at(folder).metadata.get_all("Provides-Extra")
    assert {"docs", "gpu-decode", "metrics", "parquet", "ray", "test", "track"} <= set(extras)


# Modules that come with Detectron2, or whose errors say how to get them.
OF_DETECTRON2 = {"PIL", "detectron2", "fvcore", "hydra", "omegaconf", "yaml"}
NAMED_IF_MISSING = {"cv2", "triton"}
# Modules of distributions with other names, or that come with others.
MODULES = {
    "cityscapesscripts": ["cityscapesscripts"],
    "prometheus-client": ["prometheus_client"],
    "trackers": ["trackers", "supervision"],
}


def test_every_import_is_required_or_an_extra(wheel):
    """Imports of the package and of the project, whose plots and tables need no more."""
    (folder,) = wheel.glob("*.dist-info")
    lines = importlib.metadata.Distribution.at(folder).requires
    names = {re.match(r"[\w.-]+", line)[0].lower() for line in lines}
    known = {module for name in names for module in MODULES.get(name, [name])}
    known |= OF_DETECTRON2 | NAMED_IF_MISSING | set(sys.stdlib_module_names)
    known |= {"blockcopy_d2", "blockcopy_protocol"}
    for path in [*(ROOT / "blockcopy_d2").rglob("*.py"), *(ROOT / "projects").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            imported = []
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported = [node.module]
            unknown = {name.split(".")[0] for name in imported} - known
            assert not unknown, f"{path}: setup.py does not name {unknown}"


def loaded_by(statement):
    """
    Returns:
        tuple[set[str], float]: modules that a new interpreter has loaded after ``statement``, and
        the seconds that it took.
    """
    program = (
        f"import time; start = time.perf_counter(); {statement}; took = time.perf_counter() - start"
        "; import json, sys; print(json.dumps([list(sys.modules), took]))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    names, seconds = json.loads(done.stdout)
    return set(names), seconds


def test_importing_the_package_is_quick():
    names, seconds = loaded_by("import blockcopy_d2")
    assert seconds < 1.5 and not names & {"torch", "detectron2", "matplotlib", "av"}


def test_nothing_is_imported_that_only_drawing_and_decoding_need():
    names, _ = loaded_by(
        "from blockcopy_d2 import VideoPredictor, accelerate;"
        " import blockcopy_d2.data, blockcopy_d2.engine, blockcopy_d2.visualization"
    )
    assert "torch" in names
    extras = {"prometheus_client", "pyarrow", "ray", "torchcodec", "trackers"}
    assert not names & ({"av", "jinja2", "matplotlib", "scipy"} | extras)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_installed_into_an_empty_environment(kind, wheel, clone, tmp_path):
    """The package's requirements are found in the environment of the tests."""
    if kind == "wheel":
        (package,) = wheel.parent.glob("*.whl")
    else:
        build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
        command = [sys.executable, "-c", build, str(tmp_path)]
        subprocess.run(command, cwd=clone, check=True, capture_output=True)
        (package,) = tmp_path.glob("*.tar.gz")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def call(*command):
        done = subprocess.run(
            list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    call(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(call(python, "-c", "import site; print(site.getsitepackages()[0])").strip())
    # Its .pth files, such as that of an editable installation, do not count.
    (site / "required.pth").write_text(sysconfig.get_path("purelib"))
    install = (sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps")
    # The package may also be installed where its requirements are.
    call(*install, "--no-index", "--no-build-isolation", "--ignore-installed", package)
    lines = set(call(python, "-c", USE_THE_WHEEL, site).split("\n"))
    assert {f"config {name}" for name in shipped(ROOT / "configs", ".yaml")} <= lines
    assert {f"weights {name}" for name in shipped(ROOT / "weights", ".pth")} <= lines
    assert call(python, "-c", CHECK_REQUIREMENTS).split() == [blockcopy_d2.__version__]
    for module in ("batch", "report", "data.streetclips"):
        assert "usage: " in call(python, "-m", f"blockcopy_d2.{module}", "--help")
