#!/usr/bin/env python3
"""
Says how many GPUs a number of cameras or of files needs, from two measured figures: milliseconds
per frame and megabytes per stream. docs/scale.md explains the arithmetic.

    python tools/capacity.py --cameras 500 --fps 25 --frame-ms 1.61 --stream-mb 1604
    python tools/capacity.py --files 10000 --minutes 1 --fps 25 --frame-ms 1.61 --gpus 16

--benchmark reads both figures from a file that `python -m benchmarks.streams` has written.
"""

import argparse
import json
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Figures:
    """
    Attributes:
        frame_ms (float): milliseconds for one frame of one stream, at the best batch size.
        stream_mb (float): memory of a stream, its share of the weights included.
        streams (int): number of streams in a batch, as measured.
    """

    frame_ms: float
    stream_mb: float
    streams: int = 1

    @classmethod
    def of_benchmark(cls, results, share):
        """
        Args:
            results (dict): file of benchmarks.streams.
            share (str): executed share of the blocks, one of those measured.

        Raises:
            ValueError: it was not measured, or another benchmark wrote the file.
        """
        if not isinstance(results, dict) or not {"blockcopy", "memory_mb"} <= results.keys():
            raise ValueError("The --benchmark was not written by `python -m benchmarks.streams`.")
        measured = {
            int(number): shares[share]["frame_ms"]
            for number, shares in results["blockcopy"].items()
            if share in shares
        }
        if not measured:
            known = sorted({name for shares in results["blockcopy"].values() for name in shares})
            raise ValueError(f"--share {share} was not measured; there are {', '.join(known)}.")
        streams = min(measured, key=measured.get)
        memory = results["memory_mb"][str(streams)] / streams
        return cls(frame_ms=measured[streams], stream_mb=memory, streams=streams)


def cameras_per_gpu(figures, fps, *, load=0.8, gpu_mb=139_000):
    """
    Args:
        figures (Figures):
        fps (float): frames that each camera sends per second.
        load (float): share of the time to plan with. The rest is for frames that run whole: first
            ones, cuts, cameras that were lost.
        gpu_mb (float): memory of a GPU.

    Returns:
        tuple[int, int]: as many as the time allows, and as many as the memory allows.
    """
    by_time = load * 1000 / (fps * figures.frame_ms)
    return math.floor(by_time + 1e-9), math.floor(gpu_mb / figures.stream_mb)


def hours_of_files(figures, frames, gpus, *, load=1.0):
    """float: hours that ``gpus`` need for so many frames, if they are shared out evenly."""
    return frames * figures.frame_ms / 1000 / load / gpus / 3600


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--cameras", type=int, metavar="N", help="number of cameras")
    what.add_argument("--files", type=int, metavar="N", help="number of video files")
    parser.add_argument("--fps", type=float, default=25.0, help="frames per second (%(default)s)")
    parser.add_argument("--minutes", type=float, default=1.0, help="length of a file (%(default)s)")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs that run files (%(default)s)")
    parser.add_argument("--frame-ms", type=float, help="milliseconds per frame")
    parser.add_argument("--stream-mb", type=float, default=1604.0, help="memory of a stream")
    parser.add_argument("--benchmark", metavar="FILE", help="results of benchmarks.streams")
    parser.add_argument(
        "--share", default="0.15", help="share of blocks, of --benchmark (%(default)s)"
    )
    parser.add_argument(
        "--load", type=float, default=0.8, help="share of time that a GPU is busy (%(default)s)"
    )
    parser.add_argument("--gpu-gb", type=float, default=139.0, help="memory of a GPU (%(default)s)")
    parser.add_argument(
        "--decode-ms", type=float, metavar="MS", help="time of a core to decode a frame"
    )
    return parser


def plan(args):
    """
    Args:
        args (Namespace): arguments of the command line.

    Returns:
        list[str]: lines to print.

    Raises:
        ValueError: no figures, or numbers that are out of range.
    """
    if args.benchmark:
        with open(args.benchmark, encoding="utf-8") as f:
            figures = Figures.of_benchmark(json.load(f), args.share)
    elif args.frame_ms is not None:
        figures = Figures(args.frame_ms, args.stream_mb)
    else:
        raise ValueError("Give --frame-ms, or --benchmark FILE.")
    numbers = [args.fps, args.minutes, args.gpus, args.load, args.gpu_gb]
    numbers += [figures.frame_ms, figures.stream_mb]
    numbers += [x for x in (args.cameras, args.files, args.decode_ms) if x is not None]
    if not all(0 < x < math.inf for x in numbers) or args.load > 1:
        raise ValueError("All numbers must be above 0 and finite, and --load at most 1.")
    lines = [f"{figures.frame_ms:g} ms per frame, {figures.stream_mb:.0f} MB per stream"]
    if figures.streams > 1:
        lines[0] += f", in batches of {figures.streams}"
    rate = args.load * 1000 / figures.frame_ms
    if args.cameras:
        options = {"load": args.load, "gpu_mb": 1000 * args.gpu_gb}
        by_time, by_memory = cameras_per_gpu(figures, args.fps, **options)
        lines.append(f"cameras per GPU: {by_time} by time, {by_memory} by memory")
        most = min(by_time, by_memory)
        if not most:
            raise ValueError("Not one camera fits: lower --fps, or execute fewer blocks.")
        lines.append(f"GPUs: {math.ceil(args.cameras / most)}")
        rate = min(rate, most * args.fps)
    else:
        frames = round(args.files * args.minutes * 60 * args.fps)
        hours = hours_of_files(figures, frames, args.gpus, load=args.load)
        lines.append(f"{frames} frames: {hours:.2f} hours on {args.gpus} GPUs")
    if args.decode_ms:
        cores = rate * args.decode_ms / 1000
        lines.append(f"cores to decode {rate:.0f} frames per second for a GPU: {cores:.1f}")
    return lines


def main():
    try:
        print("\n".join(plan(get_parser().parse_args())))
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
