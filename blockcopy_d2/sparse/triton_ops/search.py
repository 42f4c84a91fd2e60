"""Measures configurations on the GPU at hand, for the tables that tuning.py reads."""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import logging
import multiprocessing
import os
import statistics

import torch
import triton

from .compact import allocate_list, compact
from .conv import ConvolutionLaunch, Workspace, convolution_kernel
from .conv_shape import ConvolutionConfig, pack_weight
from .tuning import Device, layer_key, pixel_bucket, table_path

logger = logging.getLogger(__name__)

# (pixels, channels, warps, weights first) of a tile.
_TILES = (
    (64, 16, 4, False), (64, 32, 4, False), (64, 64, 4, False), (64, 128, 4, False),
    (64, 256, 4, False), (128, 16, 4, False), (128, 32, 4, False), (128, 64, 4, False),
    (128, 64, 8, False), (128, 128, 8, False), (128, 256, 8, False), (256, 128, 8, False),
    (16, 64, 4, True), (16, 128, 4, True), (32, 64, 4, True), (32, 128, 4, True),
    (64, 128, 4, True), (128, 128, 8, True),
)  # fmt: skip
# (bytes of the reduction per row, stages of the pipeline).
_PIPELINES = ((64, 4), (128, 3), (128, 5), (256, 3))
_SPLITS = (1, 4, 8, 16, 32)
_PER_SM = (0, 1, 2)
_REPEATS = 20


def search(layers, shares, *, device=None, workers=None):
    """The fastest configurations of some convolutions.

    Args:
        layers: (ConvolutionShape, levels, dtype) of every launch, levels as ConvolutionLaunch
            takes them; their maps are overwritten.
        shares: of the blocks, to be measured at.
        device: of the maps.
        workers: processes that compile; None for one per core.

    Returns:
        dict: layer_key -> fields of the ConvolutionConfig that is fastest at the share of the key,
        among those that are not much slower than others at the other shares.
    """
    device = torch.device(device or "cuda")
    gpu = Device(device)
    unique = {}
    for shape, levels, dtype in layers:
        pixels = sum(level.tiling.num_pixels for level in levels)
        key = (layer_key(shape, dtype, pixel_bucket(pixels)), len(levels))
        unique.setdefault(key, (shape, levels, dtype, pixels))
    largest = max(bm * bn for bm, bn, *_ in _TILES)
    workspace = Workspace(largest * gpu.num_sms, gpu.num_sms, device)
    jobs = {}
    for shape, levels, dtype, _ in unique.values():
        for config in candidates(shape, dtype, gpu):
            job = _launch(shape, levels, config, gpu, workspace).signature()
            jobs[str(job)] = job
    logger.info("Compiling %d kernels.", len(jobs))
    _compile(list(jobs.values()), workers)
    entries = {}
    for shape, levels, dtype, pixels in unique.values():
        lists = [_random_blocks(levels[0].tiling, share, device) for share in shares]
        times = {}
        for config in candidates(shape, dtype, gpu):
            times[config] = _times(_launch(shape, levels, config, gpu, workspace), lists)
        finalists = set()
        for position in range(len(shares)):
            finalists |= set(sorted(times, key=lambda config: times[config][position])[:3])
        for config, splits, per_sm in itertools.product(finalists, _SPLITS, _PER_SM):
            variant = dataclasses.replace(config, max_splits=splits, per_sm=per_sm)
            times[variant] = _times(_launch(shape, levels, variant, gpu, workspace), lists)
        best = [min(column) for column in zip(*times.values())]
        for position, share in enumerate(shares):
            chosen = min(times, key=lambda config: _cost(times[config], best, position))
            name = layer_key(shape, dtype, pixel_bucket(pixels * share))
            entries[name] = dataclasses.asdict(chosen)
            logger.info("%s: %.1f us (fastest %.1f) with %s", name,
                        1e3 * times[chosen][position], 1e3 * best[position], chosen)  # fmt: skip
    return entries


def candidates(shape, dtype, device):
    """ConvolutionConfigs that fit a layer and a GPU, reductions split and a program per tile."""
    _, unit_in, unit_out = shape.units
    length = shape.kernel[1] * shape.row_pack if shape.row_pack else unit_in
    widest = max(triton.next_power_of_2(unit_out), 16)
    found = {}
    for (bm, bn, warps, swap), (row_bytes, stages) in itertools.product(_TILES, _PIPELINES):
        bk = min(row_bytes // dtype.itemsize, max(triton.next_power_of_2(length), 16))
        shared_memory = (bm + bn) * bk * dtype.itemsize * stages
        if row_bytes < 128 and length * dtype.itemsize >= 128:
            continue
        if bn > widest or (bn < 32 and widest > bn) or shared_memory > device.shared_memory:
            continue
        taps, reduction = shape.reduction(bk)
        if stages > 3 and taps * reduction // bk < stages:
            continue
        found[bm, bn, bk, warps, stages, swap] = ConvolutionConfig(
            bm, bn, bk, warps, stages, max_splits=16, swap=swap
        )
    return list(found.values())


def save(entries, device_name, path=None):
    """Adds entries to the table of a GPU; returns its path."""
    path = path or table_path(device_name)
    known = json.loads(path.read_text())["entries"] if path.exists() else {}
    known.update(entries)
    table = {
        "gpu": device_name,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "entries": dict(sorted(known.items())),
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(table, indent=1) + "\n")
    return path


def _launch(shape, levels, config, gpu, workspace):
    dtype, device = levels[0].x.rows.dtype, levels[0].x.rows.device
    weight = torch.randn(
        shape.out_channels, shape.in_channels // shape.groups, *shape.kernel, device=device
    )
    packed = pack_weight((weight / weight[0].numel() ** 0.5).to(dtype), None, shape, config)
    levels = [dataclasses.replace(level, packed=packed) for level in levels]
    return ConvolutionLaunch(
        shape, config, levels, precision="tf32", workspace=workspace, num_sms=gpu.num_sms,
        pdl=gpu.pdl,
    )  # fmt: skip


def _compile(jobs, workers):
    """Fills Triton's cache on disk, in parallel; launches then only load what is there."""
    context = multiprocessing.get_context("spawn")
    workers = workers or min(os.cpu_count(), 16)
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        list(pool.map(_compile_one, jobs, chunksize=4))


def _compile_one(job):
    arguments, constants = job
    with contextlib.suppress(triton.runtime.errors.OutOfResources):
        convolution_kernel.warmup(*arguments, grid=(1,), **constants)


def _random_blocks(tiling, share, device):
    count = max(round(tiling.num_blocks * share), 1)
    active = torch.zeros(tiling.num_blocks, dtype=torch.bool)
    active[
        torch.randperm(tiling.num_blocks, generator=torch.Generator().manual_seed(0))[:count]
    ] = 1
    active = active.view(-1, tiling.rows, tiling.columns).to(device)
    blocks = allocate_list(active, 1)
    compact(active, 1, blocks)
    return blocks


def _times(launch, lists):
    """Milliseconds for each of the lists, infinite if the GPU cannot run the launch."""
    try:
        return [_milliseconds(launch, blocks) for blocks in lists]
    except triton.runtime.errors.OutOfResources:
        return [float("inf")] * len(lists)


def _milliseconds(launch, blocks):
    launch(blocks)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_REPEATS):
            launch(blocks)
    graph.replay()
    times = []
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / _REPEATS)
    return statistics.median(times)


def _cost(times, best, position):
    """Slowdown at one share, and a little of that at the others."""
    slowdowns = [time / fastest for time, fastest in zip(times, best)]
    return slowdowns[position] + 0.2 * sum(slowdowns) / len(slowdowns)
