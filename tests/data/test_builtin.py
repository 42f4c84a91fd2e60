"""Data sets that are registered but not on disk."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys
from detectron2.data import DatasetCatalog
import blockcopy_d2.data
errors = {}
for name in sys.argv[1:]:
    try:
        DatasetCatalog.get(name)
    except FileNotFoundError as error:
        errors[name] = str(error)
print(json.dumps(errors))
"""
CITYSCAPES = "cityscapes_video_fine_instance_seg_val"
STREETCLIPS = "streetclips_full_train"
PETS09 = "pets09_video_val"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(scope="module")
def errors(folder):
    """Another process is needed, since the folder of data sets is read when they are registered."""
    command = [sys.executable, "-c", PROGRAM, CITYSCAPES, STREETCLIPS, PETS09]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_errors_say_where_the_data_comes_from(errors, folder):
    assert "https://www.cityscapes-dataset.com" in errors[CITYSCAPES]
    assert "leftImg8bit_sequence_trainvaltest.zip" in errors[CITYSCAPES]
    missing = f"{folder}/cityscapes/leftImg8bit_sequence/val is missing"
    assert missing in errors[CITYSCAPES]


def test_errors_tell_the_command(errors, folder):
    command = f"--output {folder}/streetclips_full --split train --size 1024x2048 --clips N"
    assert f"python -m blockcopy_d2.data.streetclips {command}" in errors[STREETCLIPS]
    assert f"{folder}/PETS09-S2L1/img1 is missing" in errors[PETS09]
    command = "python -m blockcopy_d2.data.pets09 --video vtest.avi --boxes gt.txt"
    assert command in errors[PETS09]


def test_errors_are_one_line_and_leave_no_file(errors, folder):
    assert len(errors) == 3
    assert not any("\n" in error for error in errors.values())
    assert not list(folder.iterdir())
