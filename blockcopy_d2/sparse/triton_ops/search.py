"""Measures configurations on the GPU at hand, for the tables that tuning.py reads."""

import concurrent.futures
import dataclasses
import itertools
import json
import logging
import math
import multiprocessing
import os
import pathlib
import re
import statistics

import torch
import triton
from tqdm import tqdm

from blockcopy_d2.atomic import atomic_write
from blockcopy_d2.kernels.device import Device
from blockcopy_d2.kernels.launch import compile_launch

from .bottleneck import BottleneckConfig, BottleneckLaunch, bottleneck_kernel
from .box_conv import (
    BoxConfig,
    BoxConvolutionLaunch,
    box_convolution_kernel,
    can_flatten,
    takes_boxes,
)
from .compact import allocate_list, compact
from .conv import ConvolutionLaunch, convolution_kernel
from .conv_shape import ConvolutionConfig, pack_weight
from .partial_sums import Workspace
from .tuning import PIXELS_OF_A_BOX, bottleneck_key, layer_key, pixel_bucket, table_path, to_entry

logger = logging.getLogger(__name__)

# (pixels, channels, warps, weights first) of a tile.
_SMALL_TILES = ((64, 16, 4), (128, 16, 4), (128, 32, 4), (64, 64, 4), (64, 128, 4), (128, 64, 4))
_LARGE_TILES = ((128, 64, 8), (128, 128, 8), (128, 256, 8), (256, 128, 8))
_SWAPPED_TILES = ((16, 64, 4), (32, 64, 4), (32, 128, 4), (128, 128, 8))
_TILES = (
    *((*tile, False) for tile in (*_SMALL_TILES, *_LARGE_TILES)),
    *((*tile, True) for tile in _SWAPPED_TILES),
)
# (bytes of the reduction per row, stages of the pipeline).
_PIPELINES = ((64, 4), (128, 3), (128, 5), (256, 3))
# (pixels, channels, warps, stages) of a tile of box_conv.py.
_WIDE_BOXES = ((256, 128, 8, 3), (128, 256, 8, 4), (64, 256, 8, 4), (64, 128, 4, 4))
_SQUARE_BOXES = ((128, 128, 4, 4), (128, 128, 8, 4), (128, 128, 8, 6))
_SMALL_BOXES = ((64, 64, 4, 4), (64, 64, 4, 6))
_TALL_BOXES = ((128, 64, 4, 4), (256, 64, 4, 3), (256, 64, 8, 3), (16, 128, 4, 6))
_BOXES = (*_WIDE_BOXES, *_SQUARE_BOXES, *_SMALL_BOXES, *_TALL_BOXES)
_SPLITS = (1, 2, 4, 16)
_PER_SM = (0, 1, 2, 4)
# Configurations per share of which variants are measured.
_FINALISTS = 2
_REPEATS = 20
_PRECISION = "tf32"


def search(launches, shares, *, only=("",), device=None, workers=None):
    """Finds the fastest configurations of some launches, layer by layer.

    Args:
        launches: ConvolutionLaunches and BottleneckLaunches; their maps are overwritten.
        shares: shares of the blocks to measure at.
        only: parts of keys; layers whose key contains one of them are measured.
        device: device of the maps.
        workers: processes that compile; None for one per core.

    Yields:
        dict: for a layer, key in the tables -> fields of the configuration that is fastest at the
        share of the key, among those that are not much slower than others at the other shares.
    """
    device = torch.device(device or "cuda")
    gpu = Device(device)
    largest = max(bm * bn for bm, bn, *_ in (*_TILES, *_BOXES))
    workspace = Workspace(max(_PER_SM) * largest * gpu.num_sms, gpu.num_sms, device)
    layers = {}
    for launch in launches:
        kind = _Bottleneck if isinstance(launch, BottleneckLaunch) else _Convolution
        layer = kind(launch, gpu, workspace)
        if any(part in layer.key(1.0) for part in only):
            layers.setdefault((layer.key(1.0), layer.num_levels), layer)
    with _Compiler(workers) as compiler:
        candidates = [(layer, config) for layer in layers.values() for config in layer.candidates()]
        compiler.compile(layer.launch(config) for layer, config in candidates)
        for layer in tqdm(layers.values(), desc="measuring", unit="layer"):
            yield _search_layer(layer, shares, device, compiler)


def _search_layer(layer, shares, device, compiler):
    """search() for one layer whose candidates were compiled."""
    lists = [_random_blocks(layer.tiling, share, device) for share in shares]
    times = {}

    def measure(configs):
        for config in configs:
            trial = layer.launch(config)
            if compiler.has(trial):
                times[config] = _times(trial, lists)

    measure(layer.candidates())
    finalists = set()
    for position in range(len(shares)):
        finalists |= set(sorted(times, key=lambda config: times[config][position])[:_FINALISTS])
    variants = list(itertools.chain.from_iterable(map(layer.variants, finalists)))
    compiler.compile(map(layer.launch, variants))
    measure(variants)
    best = [min(column) for column in zip(*times.values())]
    entries = {}
    for position, share in enumerate(shares):
        chosen = min(times, key=lambda config: _cost(times[config], best, position))
        entries[layer.key(share)] = to_entry(chosen)
        time, fastest = 1e3 * times[chosen][position], 1e3 * best[position]
        logger.info("%s: %.1f us (fastest %.1f) with %s", layer.key(share), time, fastest, chosen)
    return entries


class _Convolution:
    """The layer of a ConvolutionLaunch or BoxConvolutionLaunch."""

    def __init__(self, launch, gpu, workspace):
        self.shape, self.levels = launch.shape, launch.levels
        self.gpu, self.workspace = gpu, workspace
        self.num_levels = len(launch.levels)
        self.tiling = launch.levels[0].tiling
        self.dtype = launch.levels[0].x.rows.dtype
        maps = [(level.x, level.tiling.tile) for level in self.levels]
        self.boxes = takes_boxes(self.shape, maps, gpu)

    def key(self, share):
        pixels = sum(level.tiling.num_pixels for level in self.levels)
        return layer_key(self.shape, self.dtype, pixel_bucket(pixels * share))

    def candidates(self):
        """Configurations that fit layer and GPU."""
        large = self.tiling.tile**2 >= PIXELS_OF_A_BOX and self.shape.out_channels >= 32
        boxes = self._boxes() if self.boxes else []
        return boxes if boxes and large else boxes + self._gathers()

    def _boxes(self):
        shape, itemsize = self.shape, self.dtype.itemsize
        bk = math.gcd(shape.in_channels, 128 // itemsize)
        widest = max(triton.next_power_of_2(shape.out_channels), 64)
        pixels = max(self.tiling.tile**2, 16)
        found = []
        for bm, bn, warps, stages in _BOXES:
            shared_memory = (bm + bn) * bk * itemsize * stages
            if bm > pixels or bn > widest or shared_memory > self.gpu.shared_memory:
                continue
            for flatten in (False, True) if can_flatten(shape, bk, self.num_levels) else (False,):
                found.append(BoxConfig(bm, bn, bk, warps, stages, per_sm=1, flatten=flatten))
        return found

    def _gathers(self):
        """With reductions split and a program per tile."""
        shape, itemsize = self.shape, self.dtype.itemsize
        _, unit_in, unit_out = shape.units
        length = shape.kernel[1] * shape.row_pack if shape.row_pack else unit_in
        widest = max(triton.next_power_of_2(unit_out), 16)
        found = {}
        for (bm, bn, warps, swap), (row_bytes, stages) in itertools.product(_TILES, _PIPELINES):
            bk = min(row_bytes // itemsize, max(triton.next_power_of_2(length), 16))
            shared_memory = (bm + bn) * bk * itemsize * stages
            if row_bytes < 128 and length * itemsize >= 128:
                continue
            if bn > widest or (bn < 32 and widest > bn) or shared_memory > self.gpu.shared_memory:
                continue
            taps, reduction = shape.reduction(bk)
            if stages > 3 and taps * reduction // bk < stages:
                continue
            found[bm, bn, bk, warps, stages, swap] = ConvolutionConfig(
                bm, bn, bk, warps, stages, max_splits=16, swap=swap
            )
        return list(found.values())

    def variants(self, config):
        """Returns variants of a configuration with the same kernel, launched differently."""
        if isinstance(config, BoxConfig):
            found = [dataclasses.replace(config, per_sm=per_sm) for per_sm in _PER_SM]
            if not config.flatten:
                found += [
                    dataclasses.replace(config, per_sm=per_sm, max_splits=splits)
                    for per_sm, splits in itertools.product(_PER_SM[1:], _SPLITS[1:])
                ]
            return found
        found = []
        for splits, per_sm in itertools.product(_SPLITS, _PER_SM):
            found.append(dataclasses.replace(config, max_splits=splits, per_sm=per_sm))
        return found

    def launch(self, config):
        shape, device = self.shape, self.levels[0].x.rows.device
        weight = torch.randn(
            shape.out_channels, shape.in_channels // shape.groups, *shape.kernel, device=device
        )
        weight = (weight / weight[0].numel() ** 0.5).to(self.dtype)
        packed = pack_weight(weight, None, shape, config)
        levels = [dataclasses.replace(level, packed=packed) for level in self.levels]
        kind = BoxConvolutionLaunch if isinstance(config, BoxConfig) else ConvolutionLaunch
        options = dict(precision=_PRECISION, workspace=self.workspace, device=self.gpu)
        return kind(shape, config, levels, **options)


class _Bottleneck:
    """The layer of a BottleneckLaunch."""

    num_levels = 1

    def __init__(self, launch, gpu, workspace):
        self.shape, self.operands, self.gpu = launch.shape, launch.operands, gpu
        self.tiling = launch.operands["tiling"]
        self.dtype = launch.operands["x"].rows.dtype

    def key(self, share):
        return bottleneck_key(self.shape, self.dtype, pixel_bucket(self.tiling.num_pixels * share))

    def candidates(self):
        itemsize = self.dtype.itemsize
        bk = math.gcd(self.shape.in_channels, 128 // itemsize)
        found = []
        for bm, bn, warps, stages in itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3)):
            first = (bm + self.shape.middle) * bk * stages
            second = (self.shape.middle + self.shape.next_channels) * bn * stages
            fits = (max(first, second) + bm * bn) * itemsize <= self.gpu.shared_memory
            if fits and self.shape.out_channels % bn == 0:
                found.append(BottleneckConfig(bm, bn, bk, warps, stages))
        return found

    def variants(self, config):
        for per_sm in (1, 2, 4, 8):
            yield dataclasses.replace(config, per_sm=per_sm)

    def launch(self, config):
        return BottleneckLaunch(self.shape, config, **self.operands, device=self.gpu)


def read_entries(path):
    """
    Args:
        path (Path): path of a table, which may not exist yet.

    Returns:
        dict: its entries.

    Raises:
        ValueError: the file is something else, which must not be replaced.
    """
    # Special files, such as /dev/null, can be written to and hold nothing.
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text())["entries"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} exists and is not a table of kernels. Choose another file."
        ) from error


def save(entries, device, path=None):
    """Adds entries to the table of a Device; returns its path."""
    path = path or table_path(device.name)
    known = {**read_entries(path), **entries}
    table = {
        "gpu": device.name,
        "compute_capability": device.capability,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "entries": dict(sorted(known.items())),
    }
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as temporary:
        pathlib.Path(temporary).write_text(json.dumps(table, indent=1) + "\n")
    return path


class _Compiler:
    """Fills Triton's cache on disk, in parallel. Launches then only load from it."""

    def __init__(self, workers=None):
        context = multiprocessing.get_context("spawn")
        workers = workers or min(os.cpu_count(), 32)
        self._pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)
        self._compiled = {}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._pool.shutdown(cancel_futures=True)

    def compile(self, launches):
        jobs = {_key(job): job for job in map(self._job, launches)}
        jobs = {key: job for key, job in jobs.items() if key not in self._compiled}
        results = self._pool.map(_compile_one, jobs.values())
        results = tqdm(results, total=len(jobs), desc="compiling", unit="kernel", leave=False)
        self._compiled.update(zip(jobs, results))

    def has(self, launch):
        """Returns whether the kernels of the launch compile."""
        return self._compiled[_key(self._job(launch))]

    @staticmethod
    def _job(launch):
        return (launch.kernel.__name__, *launch.signature())


def _key(job):
    """
    Returns equal keys for equal jobs. (Their stand-ins for tensors are new objects every time.)
    """
    return re.sub(r" object at 0x[0-9a-f]+", "", str(job))


def _compile_one(job):
    name, arguments, constants = job
    kernels = (convolution_kernel, box_convolution_kernel, bottleneck_kernel)
    kernel = next(kernel for kernel in kernels if kernel.__name__ == name)
    try:
        compile_launch(kernel, arguments, constants)
    except triton.runtime.errors.OutOfResources:
        return False
    except RuntimeError as error:  # of the compiler: there is no launch
        logger.warning("Left out, does not compile: %s %s: %s", name, constants, error)
        return False
    return True


def _random_blocks(tiling, share, device):
    count = max(round(tiling.num_blocks * share), 1)
    active = torch.zeros(tiling.num_blocks, dtype=torch.bool)
    active[
        torch.randperm(tiling.num_blocks, generator=torch.Generator().manual_seed(0))[:count]
    ] = 1
    active = active.view(-1, tiling.rows, tiling.columns).to(device)
    blocks = allocate_list(active, 1)
    compact(active, 1, blocks)
    return dataclasses.replace(blocks, settled=True)


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
