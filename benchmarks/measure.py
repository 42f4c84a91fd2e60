"""Times variants interleaved in one run; reports medians with quartiles."""

import argparse
import datetime
import functools
import json
import pathlib
import statistics
import subprocess
import time

import torch
from tqdm import tqdm

from blockcopy_d2.atomic import atomic_write
from blockcopy_d2.engine.arguments import add_config_arguments, positive
from blockcopy_d2.engine.machine import processor_name

__all__ = [
    "COMPILE_MODES",
    "DTYPES",
    "RESULTS",
    "SHARES",
    "add_batch_sizes",
    "add_size",
    "argument_parser",
    "captured",
    "clip_by_clip",
    "environment",
    "interleaved",
    "matrix_product",
    "prepare_gpu",
    "require_gpu",
    "results_path",
    "write_json",
    "write_results",
]

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32}
# Modes of torch.compile. Those that capture graphs of their own do not fit into a frame's graph.
COMPILE_MODES = ("default", "max-autotune-no-cudagraphs")
# Executed shares of the blocks.
SHARES = (1.0, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.01)
RESULTS = pathlib.Path(__file__).parent / "results"


def argument_parser(module, description, *, config, name, rounds, compiles=True):
    """
    Args:
        module (str): name of the program, without "benchmarks.".
        description (str):
        config (str): name of the default config.
        name (str): default part of the name of the results.
        rounds (int): default number of rounds.
        compiles (bool): whether the program has a compiled rival.

    Returns:
        ArgumentParser: with the arguments that benchmarks on GPUs share.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(parser, default=config)
    parser.add_argument(
        "--name", default=name, help="part of the name of the results (%(default)s)"
    )
    parser.add_argument("--frames", metavar="DIR", help="a clip's pictures; drawn if left out")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="fp16", help="precision of the networks (%(default)s)"
    )
    parser.add_argument(
        "--block-size", type=positive, default=128, metavar="B", help="side in pixels (%(default)s)"
    )
    if compiles:
        parser.add_argument(
            "--compile-modes",
            nargs="*",
            choices=COMPILE_MODES,
            default=list(COMPILE_MODES[:1]),
            metavar="MODE",
            help=f"modes of torch.compile to try for the dense network: {', '.join(COMPILE_MODES)}"
            " (default); the second compiles for minutes, and none leaves cuDNN",
        )
    parser.add_argument(
        "--rounds", type=positive, default=rounds, help="measurements of each (%(default)s)"
    )
    return parser


def add_batch_sizes(parser):
    """
    Args:
        parser (ArgumentParser): gets an option for batches of the dense model.
    """
    parser.add_argument(
        "--batch-sizes",
        type=positive,
        nargs="*",
        default=[],
        metavar="N",
        help="sizes of further batches to time the dense model with (none); each compiles anew",
    )


def add_size(parser, height, width):
    """
    Args:
        parser (ArgumentParser): gets an option for the size of frames.
        height, width (int): the default.
    """
    parser.add_argument(
        "--size",
        type=positive,
        nargs=2,
        default=[height, width],
        metavar=("H", "W"),
        help=f"size of the frames in pixels ({height} {width})",
    )


def prepare_gpu():
    """Lets cuDNN choose its fastest algorithms, and float32 multiply as TF32. Needs a GPU."""
    require_gpu()
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True


def require_gpu():
    """
    Raises:
        SystemExit: there is no CUDA device to time anything on.
    """
    if not torch.cuda.is_available():
        raise SystemExit(
            "This benchmark needs an NVIDIA GPU and found none. On a CPU: python -m benchmarks.cpu"
        )


def matrix_product(dtype, size=8192):
    """
    Returns the practical peak of tensor cores, to compare with.

    Args:
        dtype (torch.dtype): type of square matrices; float32 multiplies as PyTorch is set to.
        size (int): size of them.

    Returns:
        tuple[callable, int]: a product, and its floating-point operations.
    """
    first, second = (torch.randn(size, size, dtype=dtype, device="cuda") for _ in range(2))
    return lambda: first @ second, 2 * size**3


def interleaved(
    variants, *, rounds=30, repeats=5, before=None, device="cuda", clock=time.perf_counter
):
    """
    Time several functions in turns, so that changes on the machine affect all alike.

    Args:
        variants (dict[str, callable]): functions to time.
        rounds (int): measurements of each.
        repeats (int): calls per measurement.
        before (dict[str, callable]): called before a measurement of that variant, not timed.
        device (str or torch.device): device that they run on.
        clock (callable): returns seconds, for functions on a CPU.

    Returns:
        dict[str, dict]: "median", "lower" and "upper" quartile, in milliseconds per call.
    """
    measure = functools.partial(_host_time, clock)
    if torch.device(device).type == "cuda":
        measure = _device_time
    times = {name: [] for name in variants}
    for _ in tqdm(range(rounds), desc="timing", unit="round"):
        for name, function in variants.items():
            if before and name in before:
                before[name]()
            function()
            times[name].append(measure(function, repeats))
    return {name: _summary(values) for name, values in times.items()}


def _device_time(function, repeats):
    """float: milliseconds per call."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # The queue is never empty at the start, so launching costs nothing, as in a running stream.
    torch.cuda._sleep(200_000)
    start.record()
    for _ in range(repeats):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / repeats


def _host_time(clock, function, repeats):
    """float: milliseconds per call."""
    start = clock()
    for _ in range(repeats):
        function()
    return 1000 * (clock() - start) / repeats


def clip_by_clip(variants, num_frames, *, rounds, device="cuda"):
    """
    :func:`interleaved` for whole clips by the host's clock. The first two rounds do not count.

    Args:
        variants (dict[str, callable]): run a clip, and return its number of detections.
        num_frames (int): number of frames of the clip.
        rounds (int): measurements of each.
        device (str or torch.device): device that they run on.

    Returns:
        tuple[dict[str, dict], dict[str, float]]: quartiles in milliseconds per frame, and the mean
        number of detections of a frame.
    """
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    times, counts = {name: [] for name in variants}, {}
    for round_ in tqdm(range(rounds + 2), desc="timing", unit="round"):
        for name, clip in variants.items():
            wait()
            start = time.perf_counter()
            count = clip()
            wait()
            if round_ >= 2:
                times[name].append(1000 * (time.perf_counter() - start) / num_frames)
            counts[name] = count / num_frames
    return {name: _summary(values) for name, values in times.items()}, counts


def captured(function, *, generators=()):
    """
    Args:
        function (callable): works on tensors that stay where they are and never makes the host
            wait.
        generators (sequence[torch.Generator]): generators that it draws from.

    Returns:
        callable: replays the function as a CUDA graph. Its attribute ``result`` is the function's
        result during capture. Without a GPU it calls the function.
    """
    if not torch.cuda.is_available():

        def call():
            call.result = function()

        call()
        return call
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        result = function()

    def replay():
        graph.replay()

    replay.result = result
    # Objects of the function must outlive the graph, which holds addresses only.
    replay.function = function
    return replay


def environment(device="cuda"):
    """
    Args:
        device (str or torch.device): device that was timed.

    Returns:
        dict: everything that a time depends on besides the code.
    """
    revision = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        **(_gpu() if torch.device(device).type == "cuda" else _cpu()),
        "torch": torch.__version__,
        "revision": revision.stdout.strip() or None,
        "date": datetime.date.today().isoformat(),
    }


def _gpu():
    import triton

    return {
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": triton.__version__,
    }


def _cpu():
    return {"cpu": processor_name(), "threads": torch.get_num_threads()}


def results_path(config_name, dtype, device="cuda"):
    """
    Returns:
        Path: such as results/h100_maskrcnn_R50_FPN_fp16.json.
    """
    name = "cpu"
    if torch.device(device).type == "cuda":
        words = torch.cuda.get_device_name().lower().split()
        numbered = (word for word in words if word[0].isalpha() and any(map(str.isdigit, word)))
        name = next(numbered, "gpu")
    return RESULTS / f"{name}_{config_name}_{dtype}.json"


def write_results(path, section, values):
    """Puts ``values`` under ``section`` of a JSON file, and common values at the top."""
    results = json.loads(path.read_text()) if path.exists() else {}
    results.update(values.pop("shared", {}))
    results[section] = values
    write_json(path, results)


def write_json(path, results):
    """Writes results completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        pathlib.Path(temporary).write_text(json.dumps(results, indent=1) + "\n")


def _summary(values):
    # There are no quartiles of one value before Python 3.13.
    lower, median, upper = statistics.quantiles(2 * values if len(values) == 1 else values, n=4)
    return {"median": round(median, 4), "lower": round(lower, 4), "upper": round(upper, 4)}
