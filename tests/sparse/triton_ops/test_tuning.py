"""Configurations from the table or, without one, by rule; and the search that fills the table."""

import json

import pytest
import torch

pytest.importorskip("triton")

from blockcopy_d2.kernels.device import Device  # noqa: E402
from blockcopy_d2.sparse.state import FeatureMap  # noqa: E402
from blockcopy_d2.sparse.triton_ops import search, tuning  # noqa: E402
from blockcopy_d2.sparse.triton_ops.conv import (  # noqa: E402
    ConvolutionLaunch,
)
from blockcopy_d2.sparse.triton_ops.conv_levels import ConvolutionLevel  # noqa: E402
from blockcopy_d2.sparse.triton_ops.conv_shape import (  # noqa: E402
    ConvolutionConfig,
    ConvolutionShape,
    pack_weight,
)
from blockcopy_d2.sparse.triton_ops.geometry import Tiling  # noqa: E402
from blockcopy_d2.sparse.triton_ops.partial_sums import Workspace  # noqa: E402


def shape(in_channels=64, out_channels=128, kernel=3, stride=1, groups=1):
    padding = (kernel // 2,) * 2
    return ConvolutionShape(
        in_channels, out_channels, groups, (kernel,) * 2, stride, padding, (1, 1)
    )


def gpu(name="Some GPU", num_sms=132, shared_memory=227 << 10, capability=(7, 0)):
    device = Device("cpu")
    device.name, device.num_sms, device.shared_memory = name, num_sms, shared_memory
    device.capability = capability
    return device


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("pixels", [100, 10_000, 1_000_000])
@pytest.mark.parametrize(
    "layer", [shape(3, 64, 7, 2), shape(256, 15, 1), shape(256, 256, 3), shape(256, 256, 3, 1, 32)]
)
def test_rule_fits_layer_and_gpu(layer, pixels, dtype):
    for device in (gpu(), gpu(shared_memory=99 << 10)):
        config = tuning.convolution_config(layer, pixels, dtype, device)
        stage = (config.bm + config.bn) * config.bk * dtype.itemsize
        assert stage * config.num_stages <= device.shared_memory
        assert config.bn <= max(16, 2 * layer.units[2])
        assert config.bm * config.bn <= 128 * 32 * config.num_warps


def test_many_pixels_get_larger_tiles():
    small, large = (
        tuning.convolution_config(shape(256, 256), pixels, torch.float16, gpu())
        for pixels in (1000, 1_000_000)
    )
    assert large.bm * large.bn > small.bm * small.bn


def test_table_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "_TABLES", tmp_path)
    layer, device = shape(), gpu("GPU of this test")
    known = ConvolutionConfig(64, 128, 64, 8, 5, max_splits=3, per_sm=2, swap=True)
    key = tuning.layer_key(layer, torch.float16, tuning.pixel_bucket(30_000))
    search.save({key: tuning.to_entry(known)}, device)
    for pixels, expected in ((100_000, True), (130_000, True), (10_000_000, False)):
        found = tuning.convolution_config(layer, pixels, torch.float16, device, share=0.3)
        assert (found == known) == expected
    assert tuning.convolution_config(layer, 100_000, torch.float32, device) != known


def test_gpus_without_a_table_take_a_relative_s(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "_TABLES", tmp_path)
    layer = shape()
    key = tuning.layer_key(layer, torch.float16, tuning.pixel_bucket(30_000))
    measured = {
        gpu("GPU A", capability=(7, 5)): ConvolutionConfig(64, 128, 64, 8, 5, per_sm=1),
        gpu("GPU B", capability=(7, 5)): ConvolutionConfig(64, 128, 64, 8, 5, per_sm=2),
        gpu("GPU C", capability=(7, 2)): ConvolutionConfig(64, 128, 64, 8, 5, per_sm=3),
    }
    for device, config in measured.items():
        search.save({key: tuning.to_entry(config)}, device)
    # A GPU on which only another layer was measured.
    search.save({"another": tuning.to_entry(config)}, gpu("GPU E", capability=(7, 5)))
    by_rule = tuning.default_convolution_config(layer, 30_000, torch.float16, gpu())
    first, own, other = measured.values()
    for name, capability, expected in (
        ("GPU B", (7, 5), own),
        ("GPU D", (7, 5), first),
        ("GPU D", (7, 2), other),
        ("GPU D", (7, 0), by_rule),
        ("GPU E", (7, 5), first),
    ):
        device = gpu(name, capability=capability)
        assert tuning.convolution_config(layer, 100_000, torch.float16, device) == expected


def test_search_keeps_the_fastest(tmp_path, monkeypatch):
    layer = shape(16, 32)
    maps = [
        FeatureMap(batch=1, channels=channels, size=(16, 16), dtype=torch.float32, device="cpu")
        for channels in (16, 32)
    ]
    config = ConvolutionConfig(64, 32, 16)
    packed = pack_weight(torch.zeros(32, 16, 3, 3), None, layer, config)
    level = ConvolutionLevel(*maps, packed, Tiling(4, 4, 4, 16))

    def milliseconds(launch, blocks):
        config = launch.config
        slow = (
            abs(config.bm - 128) + abs(config.bn - 32) + abs(config.max_splits - 4) + config.per_sm
        )
        return 1.0 + slow * blocks.count.item()

    monkeypatch.setattr(search, "_milliseconds", milliseconds)
    monkeypatch.setattr(search._Compiler, "compile", lambda self, launches: None)
    monkeypatch.setattr(search._Compiler, "has", lambda self, launch: True)
    launch = ConvolutionLaunch(
        layer,
        config,
        [level],
        precision="ieee",
        workspace=Workspace(0, 4, "cpu"),
        device=gpu(num_sms=4),
    )
    assert not list(search.search([launch], (0.1,), only=("bottleneck",), device="cpu"))
    (entries,) = search.search([launch] * 2, (0.1, 1.0), device="cpu")
    assert len(entries) == 2
    for entry in entries.values():
        assert (entry["bm"], entry["bn"], entry["max_splits"], entry["per_sm"]) == (128, 32, 4, 0)
    path = search.save(entries, gpu(), tmp_path / "table.json")
    search.save({"another": entry}, gpu(), path)
    assert set(json.loads(path.read_text())["entries"]) == {*entries, "another"}
