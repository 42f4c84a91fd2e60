import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from blockcopy_d2.atomic import atomic_write

LONG_NAME = "x" * 250 + ".json"


def write(path, text):
    with atomic_write(path) as temporary:
        Path(temporary).write_text(text)


@pytest.fixture(params=[None, "old"], ids=["new file", "existing file"])
def target(request, tmp_path):
    path = tmp_path / "result.json"
    if request.param:
        path.write_text(request.param)
    return path


def content(path):
    return path.read_text() if path.exists() else None


def test_the_file_appears_whole(target):
    before = content(target)
    with atomic_write(target) as temporary:
        Path(temporary).write_text("new")
        assert content(target) == before
        assert os.path.dirname(temporary) == str(target.parent) and temporary.endswith(".json")
    assert content(target) == "new" and os.listdir(target.parent) == ["result.json"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError, SystemExit])
def test_a_failure_leaves_what_was_there(target, error):
    before = content(target)
    with pytest.raises(error):
        with atomic_write(target) as temporary:
            Path(temporary).write_text("half")
            raise error
    assert content(target) == before
    assert os.listdir(target.parent) == (["result.json"] if before else [])


def test_a_removed_temporary_file_replaces_nothing(target):
    before = content(target)
    with atomic_write(target) as temporary:
        os.remove(temporary)
    assert content(target) == before


def run(body, path):
    """Runs ``body`` in a process of its own after half of the file is written."""
    program = (
        "import os, resource, signal, sys\n"
        "from blockcopy_d2.atomic import atomic_write\n"
        "with atomic_write(sys.argv[1]) as temporary, open(temporary, 'wb') as f:\n"
        "    f.write(b'half' * 1000)\n    f.flush()\n"
        f"    {body}\n"
    )
    return subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)


def test_a_kill_leaves_what_was_there(target):
    before = content(target)
    done = run("os.kill(os.getpid(), signal.SIGKILL)", target)
    assert done.returncode == -signal.SIGKILL
    assert content(target) == before


def test_a_full_disk_leaves_what_was_there(target):
    before = content(target)
    # A limit on file size fails like a full disk: in the middle of a write.
    full = "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    full += "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)); f.write(b'half' * 10000)"
    done = run(full, target)
    assert "File too large" in done.stderr
    assert content(target) == before
    assert os.listdir(target.parent) == (["result.json"] if before else [])


def test_permissions_stay(target):
    os.umask(mask := os.umask(0))
    expected = 0o666 & ~mask
    if target.exists():
        target.chmod(expected := 0o640)
    write(target, "new")
    assert stat.S_IMODE(target.stat().st_mode) == expected


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "real").mkdir()
    link, target = tmp_path / "link.json", tmp_path / "real" / "result.json"
    link.symlink_to(target)
    for text in ("first", "second"):
        write(link, text)
        assert link.is_symlink() and target.read_text() == text
    assert os.listdir(target.parent) == ["result.json"]


def test_a_device_is_written_to():
    write("/dev/null", "nothing to lose")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_pipe_is_written_to(tmp_path):
    read, pipe = os.pipe()
    write(f"/dev/fd/{pipe}", "through")
    os.close(pipe)
    with open(read) as f:
        assert f.read() == "through"


@pytest.mark.parametrize("name", [LONG_NAME, "ä: b%03d?.json", b"\xff.json", "no_suffix", ".json"])
def test_any_name_is_written(tmp_path, name):
    path = os.path.join(os.fsencode(tmp_path), os.fsencode(name))
    write(path, "new")
    assert os.listdir(os.fsencode(tmp_path)) == [os.fsencode(name)]


def test_a_relative_name_is_that_of_the_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    with atomic_write("a.txt") as temporary:
        Path(temporary).write_text("new")
        os.chdir("other")
    assert (tmp_path / "a.txt").read_text() == "new"


def test_what_cannot_be_written_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no folder {tmp_path}/no to write .*no/a.txt"):
        write(tmp_path / "no" / "a.txt", "")
    with pytest.raises(IsADirectoryError, match=f"{tmp_path} is a folder"):
        write(tmp_path, "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_protection_is_respected(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(0o444)
    with pytest.raises(PermissionError, match=f"{path} exists and is write-protected"):
        write(path, "new")
    tmp_path.chmod(0o555)
    with pytest.raises(PermissionError, match="b.txt cannot be written: Permission denied"):
        write(tmp_path / "b.txt", "new")
    tmp_path.chmod(0o755)
