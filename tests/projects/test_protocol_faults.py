"""Faults of data, disk and signals: each is named, and what was measured and learned is kept."""

import errno
import fcntl
import itertools
import json
import os
import signal

import pytest

from tests.projects.names import NAMES


@pytest.fixture
def no_plots(project, monkeypatch):
    """They take a second."""
    monkeypatch.setattr("blockcopy_protocol.results.write_report", lambda *args: None)


pytestmark = pytest.mark.usefixtures("project", "clips", "no_plots")
SMALL = ("--warm-clips", 0, "--targets", 0.4, "--baselines")


def frames(clips, split, clip="*"):
    return sorted((clips / "leftImg8bit_sequence" / split).rglob(f"a_{clip}_*.png"))


def test_labels_that_cannot_be_read_leave_the_cost(run, read, clips):
    (labels,) = (clips / "gtFine" / "val").rglob("a_000001_*instanceIds.png")
    labels.write_bytes(labels.read_bytes()[:-30])
    with pytest.raises(SystemExit, match=f"not all methods could be scored(.|\n)*{labels.name}"):
        run(*SMALL)
    results = read()
    assert not results["complete"] and results["clips"] == 2 and results["metrics"] == []
    assert results["not_scored"].keys() == {"dense", "blockcopy 0.4"}
    assert all(row["gmacs"] > 0 for row in results["rows"])


def test_one_method_without_a_score_leaves_the_others(run, read, monkeypatch):
    from blockcopy_protocol import loop

    class Failing:
        """Fails for the second seed."""

        def __init__(self, evaluator, name):
            self.evaluator, self.name = evaluator, name

        def __getattr__(self, name):
            return getattr(self.evaluator, name)

        def evaluate(self):
            if self.name == "blockcopy 0.4 seed 1":
                raise ValueError("no such class")
            return self.evaluator.evaluate()

    class Scoring(loop.PartialScoringHook):
        def __init__(self, evaluators):
            super().__init__({name: Failing(x, name) for name, x in evaluators.items()})

    monkeypatch.setattr("blockcopy_protocol.running.PartialScoringHook", Scoring)
    with pytest.raises(SystemExit, match="seed 1: ValueError: no such class"):
        run(*SMALL, "--seeds", 2, "--clips", 1)
    dense, learned = read()["rows"]
    assert dense["AP"] is not None and learned["AP"] is None
    assert [seed["AP"] is None for seed in learned["seeds"]] == [False, True]


def test_policies_need_a_frame_to_learn_from(run, read, clips, tmp_path):
    first, *_ = frames(clips, "train", "000000")
    content = first.read_bytes()
    first.write_bytes(content[:60])
    output = tmp_path / "output"
    output.mkdir()
    (output / "results.json").write_text('"earlier"')
    run("--warm-clips", 2, "--clips", 1, "--targets", 0.4, "--baselines")
    (failure,) = read()["failed_warm_clips"]
    assert "Frame 0 of clip a_000000" in failure
    # The results of the run before have another name.
    assert json.loads((output / "results.1.json").read_text()) == "earlier"
    (output / "policy_0.4.pth").unlink()
    for file in frames(clips, "train"):
        file.write_bytes(content[:60])
    with pytest.raises(SystemExit, match=f"No frame of {NAMES['train']} could be run. Frame 0"):
        run("--warm-clips", 2, "--targets", 0.4, "--baselines")
    assert not list(output.glob("policy_*"))


def test_a_run_without_a_frame_is_an_error(run, clips):
    for file in frames(clips, "val"):
        file.unlink()
    with pytest.raises(SystemExit, match=f"No frame of {NAMES['val']} could be run.*no such file"):
        run(*SMALL)


def test_a_full_disk_leaves_what_was_written_before(run, read, monkeypatch, capfd):
    from blockcopy_protocol import results

    def full_at_times(path):
        # After the first clip, and at the end.
        if next(calls) != 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return original(path)

    original, calls = results.atomic_write, itertools.count()
    monkeypatch.setattr(results, "atomic_write", full_at_times)
    with pytest.raises(SystemExit, match="No space left on device: .*results.json"):
        run(*SMALL)
    assert read()["clips"] == 2 and not read()["complete"]
    shown = "".join(capfd.readouterr())
    assert "The run goes on, and tries again after the next clip" in shown
    assert "| dense " in shown


def test_a_signal_does_not_cut_the_saving_of_policies_short(run, tmp_path, monkeypatch):
    from blockcopy_protocol.running import PolicyCheckpointer

    def interrupted(self, name):
        os.kill(os.getpid(), signal.SIGINT)
        save(self, name)

    save = PolicyCheckpointer.save
    monkeypatch.setattr(PolicyCheckpointer, "save", _once(interrupted, save))
    with pytest.raises(SystemExit, match="output has what was run"):
        run("--warm-clips", 1, "--targets", 0.4, 0.6, "--baselines")
    saved = {file.name for file in (tmp_path / "output").glob("policy_*")}
    assert saved == {"policy_0.4.pth", "policy_0.6.pth"}


def _once(first, others):
    functions = iter([first])
    return lambda *args: next(functions, others)(*args)


def test_a_signal_before_the_first_frame_shows_no_traceback(run, monkeypatch):
    import run_protocol

    def interrupted(cfg):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_protocol, "build_video_model", interrupted)
    with pytest.raises(SystemExit, match="Interrupted"):
        run(*SMALL)


def test_output_folders_that_cannot_be_used_are_named(run, tmp_path):
    output = tmp_path / "output"
    output.write_text("")
    with pytest.raises(SystemExit, match="output is a file"):
        run(*SMALL)
    output.unlink()
    output.mkdir()
    with open(output / ".lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match="Another program writes its results to"):
            run(*SMALL)
    assert os.listdir(output) == [".lock"]


def test_policies_to_resume_from_are_named(run, tmp_path):
    folder = tmp_path / "earlier"
    for message in ("There is no such folder", "The policies there are none"):
        with pytest.raises(SystemExit, match=f"--resume needs policy_0.4.pth in .*{message}"):
            run(*SMALL, "--resume", folder)
        folder.mkdir(exist_ok=True)
    (folder / "policy_0.4_unfinished.pth").write_bytes(b"")
    with pytest.raises(SystemExit, match="ended early and left policy_0.4_unfinished.pth"):
        run(*SMALL, "--resume", folder)
