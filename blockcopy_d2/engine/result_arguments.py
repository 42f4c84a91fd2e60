"""Arguments of command lines that write results as data, and of regions."""

import argparse
import contextlib

from blockcopy_d2.results import VideoResults, check_results_path, check_tracking

from .outputs import check_output, refuse_shared_outputs

__all__ = [
    "add_region_arguments",
    "add_track_argument",
    "check_results",
    "has_region",
    "open_results",
    "polygon",
]


def add_track_argument(parser):
    """
    Add ``--track``.

    Args:
        parser (ArgumentParser):
    """
    parser.add_argument(
        "--track",
        action="store_true",
        help="give objects ids that last from frame to frame, by ByteTrack: pip install"
        " 'blockcopy-d2[track]'",
    )


def add_region_arguments(parser):
    """
    Add ``--area``, ``--always`` and ``--never``, see :meth:`VideoPredictor.set_region`.

    Args:
        parser (ArgumentParser):
    """
    helps = {
        "area": "corners of a polygon in pixels of the picture, such as '0,300 1280,300 1280,720"
        " 0,720'; blocks that touch none of it never run. May be given several times",
        "always": "a polygon; blocks that touch it run in every frame",
        "never": "a polygon; blocks that lie wholly in it never run",
    }
    for name, text in helps.items():
        parser.add_argument(
            f"--{name}", action="append", type=polygon, metavar="POLYGON", help=text
        )


def has_region(args):
    """
    Args:
        args (Namespace): with the arguments of :func:`add_region_arguments`.

    Returns:
        bool: whether any of it was given.
    """
    return any((args.area, args.always, args.never))


def polygon(text):
    """list[tuple[float, float]]: x and y of corners, or the error that argparse reports."""
    try:
        corners = [tuple(map(float, corner.split(","))) for corner in text.split()]
    except ValueError:
        corners = []
    if len(corners) < 3 or any(len(corner) != 2 for corner in corners):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a polygon; expected x,y of three corners or more: '0,0 640,0 640,360'"
        )
    return corners


def check_results(args):
    """
    Args:
        args (Namespace): arguments of demo.py.

    Raises:
        ImportError, OSError, ValueError: ``--results`` could not be written in the end.
    """
    if args.track and not args.results:
        raise ValueError("--track needs --results FILE, which has the ids.")
    if not args.results:
        return
    if args.input:
        raise ValueError("--results is for --video-input; pictures have no frames.")
    if args.track:
        check_tracking()
    check_results_path(args.results, tracks=args.track)
    check_output(args.results)
    if args.output:
        refuse_shared_outputs({"--output": args.output, "--results": args.results})


def open_results(args, fps, metadata):
    """VideoResults, or a context of None: writes the detections."""
    if not args.results:
        return contextlib.nullcontext()
    return VideoResults(
        args.results,
        fps=min(fps, args.fps or fps),
        metadata=metadata,
        threshold=args.confidence_threshold,
        track=args.track,
    )
