"""TEST.AMP.ENABLED: the task network in bf16 on CPUs that multiply it."""

import pytest
import torch
from detectron2.utils import logger as d2_logger

from blockcopy_d2.engine import load_config
from blockcopy_d2.modeling import VideoStream
from blockcopy_d2.modeling.running.precision import cpu_has_bf16, inference_autocast
from blockcopy_d2.sparse import BlockGrid
from tests.modeling.test_meta_arch import NETWORKS, build_pair

SIZE = (96, 160)


@pytest.fixture
def cpu_with(monkeypatch):
    """Pretends that the CPU has these instructions and no others."""

    def pretend(*features):
        for name in ("avx512_bf16", "amx_tile"):
            supported = name in features
            monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda yes=supported: yes)

    return pretend


def inputs(index=0):
    generator = torch.Generator().manual_seed(index)
    image = torch.randint(0, 256, (3, *SIZE), generator=generator, dtype=torch.uint8)
    return {"image": image, "height": 96, "width": 160}


def cache_dtypes(stream):
    caches = stream.features.all_caches()
    return {m.rows.dtype for kept in caches for m in kept.maps.values()}


def test_off_by_default():
    assert not load_config().TEST.AMP.ENABLED
    model, _ = build_pair("mask-rcnn")
    assert not model.amp
    stream = VideoStream()
    model.step(inputs(), stream)
    assert cache_dtypes(stream) == {torch.float32}


def test_the_config_sets_it():
    model, _ = build_pair("mask-rcnn", "TEST.AMP.ENABLED", "True")
    assert model.amp


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_runs_in_bf16_and_keeps_its_weights(name, cpu_with):
    cpu_with("avx512_bf16")
    model, stock = build_pair(name)
    model.amp = True
    before = {key: value.clone() for key, value in model.state_dict().items()}
    stream = VideoStream()
    first = model.step(inputs(), stream)
    model.step(inputs(1), stream)
    active = torch.zeros(1, 2, 3, dtype=torch.bool)
    active[0, 0, 1] = True
    layout = {"block_size": model.block_size, "image_size": stream.canvas_size}
    partial = model.step(inputs(2), stream, grid=BlockGrid(active, **layout))
    assert cache_dtypes(stream) == {torch.bfloat16}
    assert not partial.broken and partial.output.keys() == first.output.keys()
    assert stream.painted.dtype == torch.float32
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    with torch.autocast("cpu"), torch.no_grad():
        (expected,) = stock([inputs()])
    if "sem_seg" in expected:
        found, expected = (x["sem_seg"].float() for x in (first.output, expected))
        assert (found - expected).norm() < 3e-2 * expected.norm()


def test_still_images_run_in_bf16_too(cpu_with):
    cpu_with("amx_tile")
    model, stock = build_pair("semantic")
    model.amp = True
    (found,) = model([inputs()])
    with torch.autocast("cpu"), torch.no_grad():
        (expected,) = stock([inputs()])
    assert torch.equal(found["sem_seg"], expected["sem_seg"])


def test_a_cpu_without_bf16_stays_in_fp32_and_says_so_once(cpu_with, caplog, monkeypatch):
    monkeypatch.setattr(d2_logger, "_LOG_COUNTER", d2_logger.Counter())
    cpu_with()
    model, _ = build_pair("mask-rcnn")
    single, half = VideoStream(), VideoStream()
    expected = model.step(inputs(), single)
    model.amp = True
    found = [model.step(inputs(index), half) for index in range(2)]
    assert cache_dtypes(half) == {torch.float32}
    assert torch.equal(found[0]["instances"].scores, expected["instances"].scores)
    messages = [r.message for r in caplog.records if "TEST.AMP.ENABLED" in r.message]
    assert len(messages) == 1 and "neither AMX nor AVX512-BF16" in messages[0]


@pytest.mark.parametrize("features", [(), ("avx512_bf16",), ("amx_tile",)])
def test_what_counts_as_bf16(features, cpu_with):
    cpu_with(*features)
    assert cpu_has_bf16() == bool(features)
    with inference_autocast(torch.device("cpu"), True):
        assert torch.is_autocast_enabled("cpu") == bool(features)


def test_switched_off_it_leaves_the_autocast_of_the_caller(cpu_with):
    cpu_with("avx512_bf16")
    with torch.autocast("cpu"), inference_autocast(torch.device("cpu"), False):
        assert torch.is_autocast_enabled("cpu")
    model, _ = build_pair("mask-rcnn")
    stream = VideoStream()
    with torch.autocast("cpu"):
        for index in range(2):
            model.step(inputs(index), stream)
    assert cache_dtypes(stream) == {torch.bfloat16}
