"""Folder of the project, and names of the data sets that its tests register."""

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2] / "projects" / "BlockCopy"
NAMES = {"train": "protocol_train", "val": "protocol_val"}
