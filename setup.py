"""Packaging. The settings files in configs/ and the demo weights in weights/ are shipped as data of
the packages blockcopy_d2.configs and blockcopy_d2.weights (see blockcopy_d2/resources.py)."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def version():
    """Reads __version__: importing the package would need its requirements."""
    lines = (ROOT / "blockcopy_d2" / "__init__.py").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("__version__ = "))
    return line.split('"')[1]


packages = find_packages(include=["blockcopy_d2", "blockcopy_d2.*"])
package_dir = {}
for folder in ("configs", "weights"):
    if (ROOT / folder).is_dir():
        packages.append(f"blockcopy_d2.{folder}")
        package_dir[f"blockcopy_d2.{folder}"] = folder

setup(
    name="blockcopy-d2",
    version=version(),
    description="BlockCopy for Detectron2: faster video with the weights you have",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=packages,
    package_dir=package_dir,
    package_data={
        "blockcopy_d2": ["py.typed", "**/*.html", "**/*.json", "**/*.txt"],
        "blockcopy_d2.configs": ["**/*.yaml", "**/*.py"],
        "blockcopy_d2.weights": ["*.pth", "*.pkl", "*.md"],
    },
    # Detectron2, with the torch and torchvision it was built for, is the user's own: see README.md.
    install_requires=[
        "av>=17,<20",
        "cityscapesScripts>=2.2",
        "jinja2",
        "matplotlib",
        "numpy",
        "pycocotools",
        "scipy",
        "tabulate",
        "torch>=2.6",
        "tqdm",
    ],
    extras_require={
        "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"],
        "gpu-decode": ["torchcodec>=0.8"],
        "metrics": ["prometheus-client>=0.20"],
        "parquet": ["pyarrow>=14,<26"],
        "ray": ["ray>=2.30"],
        "test": [
            "hypothesis",
            "ipykernel",
            "nbclient",
            "prometheus-client>=0.20",
            "pytest",
            "pytest-xdist",
            "ruff",
        ],
        "track": ["trackers>=2.6"],
    },
)
