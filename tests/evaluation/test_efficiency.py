import pytest
import torch
from torch import nn

from blockcopy_d2.evaluation.efficiency import EfficiencyMeter, MacCounter
from blockcopy_d2.sparse import BlockGrid, BlockSparseModule, StreamState, block_sparse


@pytest.mark.parametrize(
    "layer, shape, macs",
    [
        (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 5, 7), 2 * 5 * 7 * 6 * 4 * 9),
        (nn.Conv2d(4, 6, 3, stride=2, groups=2), (1, 4, 7, 7), 3 * 3 * 6 * 2 * 9),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 5, 7), 5 * 7 * 4 * 6 * 4),
        (nn.Linear(4, 6), (3, 5, 4), 3 * 5 * 4 * 6),
        (nn.Linear(4, 6), (0, 4), 0),
    ],
)
def test_macs_of_a_layer(layer, shape, macs):
    with MacCounter(nn.Sequential(layer)) as counter:
        layer(torch.zeros(shape))
    assert counter.macs == macs
    layer(torch.zeros(shape))
    assert counter.macs == macs, "a closed counter goes on counting"


def test_macs_add_up_over_calls():
    layer = nn.Linear(4, 6)
    with MacCounter(layer) as counter:
        layer(torch.zeros(1, 4))
        layer(torch.zeros(2, 4))
    assert counter.macs == 3 * 24


def test_block_sparse_modules_count_themselves_even_when_traced():
    inside = BlockSparseModule(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)).eval())
    model = nn.ModuleList([inside, nn.Conv2d(4, 2, 1)])
    grid = BlockGrid.full(block_size=32, image_size=(64, 64))
    x = torch.zeros(1, 3, 64, 64)
    with MacCounter(model) as counter, block_sparse(model, grid, StreamState()) as frame:
        model[1](inside(x))
    assert frame.macs == 64 * 64 * 4 * 3 * 9
    assert counter.macs == 64 * 64 * 4 * 2
    with MacCounter(model) as counter:
        inside(x)
    assert counter.macs == frame.macs, "outside of block_sparse its layers run as modules"


def test_meter_averages_over_frames_and_merges():
    meter, other = EfficiencyMeter(), EfficiencyMeter()
    meter.add({"policy": 1.0, "network": 2.0}, macs=10**9)
    meter.add({"network": 4.0}, macs=3 * 10**9)
    other.add({"network": 3.0}, macs=2 * 10**9)
    assert meter.seconds_per_stage == {"policy": 0.5, "network": 3.0}
    assert meter.seconds_per_frame == 3.5
    meter.merge(other)
    assert meter.frames == 3 and meter.gmacs == 2.0
    assert meter.seconds_per_stage["network"] == 3.0
