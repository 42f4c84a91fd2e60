"""Every kernel compiles for the GPUs it is meant for, without one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    "capability, dtypes",
    [("90", ["float16"]), pytest.param("80", ["bfloat16", "float32"], marks=pytest.mark.slow)],
)
def test_compiles(capability, dtypes):
    command = [sys.executable, "-m", "tests.modeling.fixed_shape.compiling", capability, *dtypes]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert set(done.stdout.split()) == {
        "align_levels_kernel", "clock_kernel", "decode_kernel", "decode_proposals_kernel",
        "fill_kernel", "keep_kernel", "overlap_kernel", "paint_kernel", "paste_kernel",
        "rank_kernel", "roi_align_kernel", "score_kernel", "taps_kernel",
    }  # fmt: skip
