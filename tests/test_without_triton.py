"""
Everything on a CPU works where Triton is not installed, as with PyTorch for CPUs, macOS and Arm:
other tests are run in a process that finds no Triton.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from blockcopy_d2.sparse import module as sparse_module
from blockcopy_d2.sparse.module import execution

ROOT = Path(__file__).resolve().parents[1]
# Folders of kernels and of their callers, imported only where Triton runs.
KERNELS = (
    "blockcopy_d2.data.triton_",
    "blockcopy_d2.kernels.clock",
    "blockcopy_d2.kernels.dependent_launch",
    "blockcopy_d2.kernels.table",
    "blockcopy_d2.kernels.tf32",
    "blockcopy_d2.kernels.triton_",
    "blockcopy_d2.modeling.fixed_shape.triton_ops.",
    "blockcopy_d2.modeling.running.triton_",
    "blockcopy_d2.motion.triton_",
    "blockcopy_d2.policy.block_kernels",
    "blockcopy_d2.policy.choice_kernels",
    "blockcopy_d2.policy.fused",
    "blockcopy_d2.policy.gain_kernels",
    "blockcopy_d2.policy.gain_report_kernels",
    "blockcopy_d2.policy.overlap_kernels",
    "blockcopy_d2.policy.painting",
    "blockcopy_d2.sparse.device_grid",
    "blockcopy_d2.sparse.triton_",
)
POLICIES = "tests/policy/test_build.py"
LEARNING = "tests/engine/test_acceleration.py::test_an_accelerated_model_learns_as_it_runs"
FIXED_SHAPES = "tests/modeling/fixed_shape/test_nms.py"
PROGRAMS = [
    "tests/demo/test_demo.py::test_video_is_run_and_drawn",
    "tests/engine/test_train_net.py::test_warming_then_evaluating_with_the_policy",
    "tests/engine/test_predictor.py::test_video_is_streamed",
    "tests/report/test_page.py::test_command_line",
]
IMPORT_ALL = """
import importlib, json, pkgutil, sys
from tests.without_triton import hide_triton

hide_triton()
import blockcopy_d2, demo, train_net

missing = []
for module in pkgutil.walk_packages(blockcopy_d2.__path__, "blockcopy_d2."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            assert error.name == "triton", error
            missing.append(module.name)
print(json.dumps(missing))
"""


def python(*arguments):
    run = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return run.stdout


def without_triton(*tests):
    output = python("-m", "tests.without_triton", "-q", "-p", "no:cacheprovider", *tests)
    assert "passed" in output and "skipped" not in output


def test_only_kernels_import_triton():
    missing = json.loads(python("-c", IMPORT_ALL).splitlines()[-1])
    assert missing
    assert not [name for name in missing if not name.startswith(KERNELS)]


def test_policies_and_learning_need_no_triton():
    without_triton(POLICIES, LEARNING, FIXED_SHAPES)


@pytest.mark.slow
def test_programs_need_no_triton():
    without_triton(*PROGRAMS)


def test_a_backend_that_is_missing_is_named(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(sparse_module, "has_triton", lambda: False)
    with pytest.raises(RuntimeError, match="triton.*cannot be imported.*'auto' or 'torch'"):
        execution("triton", torch.zeros(1))
    assert execution("auto", torch.zeros(1)).__module__.endswith("torch_ops")
