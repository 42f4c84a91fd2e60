"""Output folders: made or named in an error, and of one program at a time."""

import fcntl
import logging
import os
import signal

import pytest

from blockcopy_d2.engine import RunStopped
from blockcopy_d2.engine.output_folder import claim_folder, make_folder, set_aside
from blockcopy_d2.engine.stopping import finishing


def test_a_folder_is_made_with_those_above(tmp_path):
    for _ in range(2):
        make_folder(str(tmp_path / "a b" / "ü"))
    assert (tmp_path / "a b" / "ü").is_dir()


@pytest.mark.parametrize("name", ["file", "file/below", "file/far/below"])
def test_files_in_the_way_are_named(tmp_path, name):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(NotADirectoryError, match=f"{name} cannot be made: .*/file is a file"):
        make_folder(str(tmp_path / name))
    assert (tmp_path / "file").read_text() == "kept"


def test_write_protected_folders_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(PermissionError, match="it is write-protected"):
        make_folder(str(tmp_path))


def test_a_folder_is_claimed_by_one_program(tmp_path):
    claim_folder(str(tmp_path))
    claim_folder(f"{tmp_path}/.")
    with open(tmp_path / ".lock", "w") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    (tmp_path / "taken").mkdir()
    with open(tmp_path / "taken" / ".lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="Another program writes its results to .*taken"):
            claim_folder(str(tmp_path / "taken"))
    claim_folder(str(tmp_path / "taken"))


def test_files_of_earlier_runs_keep_their_content(tmp_path):
    for content in "abc":
        set_aside(str(tmp_path / "metrics.json"))
        (tmp_path / "metrics.json").write_text(content)
    files = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert files == {"metrics.1.json": "a", "metrics.2.json": "b", "metrics.json": "c"}


def test_work_is_finished_before_a_signal_counts(caplog):
    done = []
    with caplog.at_level(logging.WARNING), pytest.raises(RunStopped) as stopped:
        with finishing("saving"):
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("saved")
    assert done and stopped.value.exit_code == 128 + signal.SIGTERM
    assert "SIGTERM: stopping after saving" in caplog.text
    with finishing("nothing"):
        pass
