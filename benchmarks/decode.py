"""
Measures decoding: how long a core works for a frame of a video file, for `tools/capacity.py
--decode-ms` and to see whether decoding on the GPU is worth it.

    python -m benchmarks.decode
    python -m benchmarks.decode --video street.mp4
    python -m benchmarks.decode --decoder torchcodec --device cuda

Without --video the file is H.264 in yuv420p of a StreetClips clip, which is drawn and written as
demo.py writes videos. "core_ms" is the time of all cores together, "ms" that of the clock, per
frame; both include colours and the copy to a BGR picture. Writes
benchmarks/results/DEVICE_decode_DECODER.json, a section for each size.
"""

import argparse
import os
import statistics
import tempfile
import time

import torch

from blockcopy_d2.data import VideoFrames
from blockcopy_d2.data.torchcodec_video import DECODERS
from blockcopy_d2.engine.arguments import errors_end_the_program, positive
from blockcopy_d2.visualization.video import VideoWriter

from .frame import read_clip
from .measure import add_size, environment, results_path, write_results


def main():
    args = _parser().parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: found no NVIDIA GPU.")
    with tempfile.TemporaryDirectory() as folder:
        video = args.video
        if video is None:
            video = os.path.join(folder, "clip.mp4")
            write_clip(video, tuple(args.size))
        options = {"decoder": args.decoder, "device": args.device}
        size, results = measure(video, rounds=args.rounds, **options)
    section = f"{size[0]}x{size[1]}"
    path = results_path("decode", args.decoder, device)
    shared = {**environment(device), "video": "StreetClips" if args.video is None else "own"}
    write_results(path, section, {"shared": shared, **results})
    print(f"{section}: {results}")
    print(f"results in {path}")


def write_clip(path, size):
    """
    Args:
        path (str): file to write, H.264.
        size (tuple[int, int]): height and width of its frames.
    """
    with VideoWriter(path, 25.0) as writer:
        for image in read_clip(None, size, device="cpu"):
            writer.write(image.permute(1, 2, 0).contiguous().numpy())


def measure(video, *, rounds, decoder="pyav", device="cpu"):
    """
    Args:
        video (str): a video file.
        rounds (int): times to decode it. One more in front does not count.
        decoder, device (str): see :class:`VideoFrames`.

    Returns:
        tuple[tuple[int, int], dict]: height and width of a frame; "ms" and "core_ms" per frame,
        medians over the rounds, "frames", and "megabits" per second of the file.
    """
    clock, cores = [], []
    for _ in range(rounds + 1):
        start = time.perf_counter(), time.process_time()
        frames = sum(1 for _ in VideoFrames(video, decoder=decoder, device=device))
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        clock.append(time.perf_counter() - start[0])
        cores.append(time.process_time() - start[1])
    source = VideoFrames(video)
    per_frame = {"ms": clock, "core_ms": cores}
    return (source.height, source.width), {
        **{
            name: round(1000 * statistics.median(times[1:]) / frames, 3)
            for name, times in per_frame.items()
        },
        "frames": frames,
        "megabits": round(8e-6 * os.path.getsize(video) * source.fps / frames, 1),
    }


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decode",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--video", metavar="FILE", help="a video file; drawn if left out")
    add_size(parser, 1024, 2048)
    parser.add_argument("--decoder", choices=DECODERS, default="pyav", help="decoder (%(default)s)")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="device of the frames (%(default)s)",
    )
    parser.add_argument(
        "--rounds", type=positive, default=10, help="times to decode it (%(default)s)"
    )
    return parser


if __name__ == "__main__":
    with errors_end_the_program():
        main()
