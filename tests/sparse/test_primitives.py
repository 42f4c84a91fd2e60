"""oneDNN prepares a primitive for every new shape; frames like earlier ones have no new shapes."""

import os
import subprocess
import sys

import pytest
import torch

_SCRIPT = """
import torch
from torch import nn
from blockcopy_d2.sparse import BlockGrid, BlockSparseModule, StreamState, block_sparse

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.fine = nn.Conv2d(16, 16, 3, padding=1)
        self.coarse = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.point = nn.Conv2d(32, 16, 1)

    def forward(self, x):
        x = torch.relu(self.fine(torch.relu(self.stem(x))))
        return x, self.point(torch.relu(self.coarse(x)))

@torch.no_grad()
def run(counts, amp):
    for count in counts:
        active = torch.zeros(256, dtype=torch.bool)
        active[torch.randperm(256)[:count]] = True
        grid = BlockGrid(active.view(1, 16, 16), block_size=16, image_size=(256, 256))
        with torch.autocast("cpu", enabled=amp), block_sparse(sparse, grid, states[amp]):
            sparse(torch.randn(1, 3, 256, 256))

sparse, states = BlockSparseModule(Net().eval()), [StreamState(), StreamState()]
for amp in (False, True):
    run([256, 80, 88, 96], amp)
print("warm", flush=True)
for amp in (False, True):
    run([256, *range(73, 97)], amp)
"""


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
def test_blocks_of_a_similar_number_need_no_new_primitive():
    run = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        env={**os.environ, "ONEDNN_VERBOSE": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = run.stdout.split("warm\n")
    if "create:cache_miss" not in before:
        pytest.skip("oneDNN was built without its log, or takes no part on this CPU")
    assert after.count("primitive,exec") > 48, "oneDNN executes nothing"
    created = [line for line in after.splitlines() if "create:cache_miss" in line]
    assert not created, created[0]
