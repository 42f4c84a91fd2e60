"""The video of a run: clips of several sizes in one file, and the file after the run ends."""

import contextlib
from types import SimpleNamespace

import av
import numpy as np
import pytest
from detectron2.engine import TrainerBase

from blockcopy_d2.engine.reporting import OverlayHook


class Loop(TrainerBase):
    """Runs clips of one frame each, of the given sizes, then raises."""

    def __init__(self, sizes, error=None):
        super().__init__()
        self._frames = iter(sizes)
        self._error = error

    def run_step(self):
        size = next(self._frames, None)
        if size is None:
            raise self._error
        result = SimpleNamespace(is_first=True)
        self.runs = {"blockcopy": SimpleNamespace(result=result)}
        self.inputs = {"frame_index": 0, "size": size}


def run(path, sizes, error=None):
    loop = Loop(sizes, error)
    drawer = SimpleNamespace(draw=lambda inputs, *_: np.full((*inputs["size"], 3), 90, np.uint8))
    loop.register_hooks([OverlayHook(path, drawer, num_clips=10, fps=5)])
    expected = pytest.raises(type(error)) if error else contextlib.nullcontext()
    with expected:
        loop.train(0, len(sizes) + (error is not None))


def sizes_of(path):
    with av.open(str(path)) as container:
        return [(frame.height, frame.width) for frame in container.decode(video=0)]


def test_clips_of_other_sizes_are_fitted(tmp_path):
    run(tmp_path / "overlay.mp4", [(64, 96), (96, 64), (32, 200)])
    assert sizes_of(tmp_path / "overlay.mp4") == [(64, 96)] * 3


@pytest.mark.parametrize("frames", [0, 2])
def test_a_failed_run_leaves_the_video_of_the_run_before(tmp_path, frames):
    path = tmp_path / "overlay.mp4"
    path.write_text("old")
    run(path, [(64, 96)] * frames, RuntimeError("of the model"))
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_an_interrupted_run_leaves_its_own(tmp_path):
    path = tmp_path / "overlay.mp4"
    path.write_text("old")
    run(path, [(64, 96)] * 2, KeyboardInterrupt())
    assert sizes_of(path) == [(64, 96)] * 2
