"""Command line of StreetClips: writes a split to disk."""

import argparse
import os

from .writer import write_split

SIZES = {"512x1024": (512, 1024), "1024x2048": (1024, 2048)}


def _positive(text: str) -> int:
    """An integer of at least 1, or the error that argparse reports."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    result = argparse.ArgumentParser(
        prog="python -m blockcopy_d2.data.streetclips",
        description="Draws synthetic street clips in Cityscapes' own layout: 20 frames at 17 Hz, "
        "the last one labelled. Clips that are complete are skipped.",
    )
    result.add_argument("--output", required=True, metavar="DIR", help="folder of the data set")
    result.add_argument(
        "--split", required=True, choices=["train", "val", "test"], help="split to draw"
    )
    result.add_argument(
        "--clips", type=_positive, required=True, metavar="N", help="number of clips"
    )
    result.add_argument(
        "--size", choices=list(SIZES), default="512x1024", help="height x width of the pictures"
    )
    result.add_argument("--seed", type=int, default=1, metavar="S", help="seed of the data set")
    result.add_argument(
        "--workers",
        type=_positive,
        default=os.cpu_count() or 1,
        metavar="W",
        help="processes that draw (default: one per core)",
    )
    result.add_argument(
        "--labelled-only",
        action="store_true",
        help="only the labelled last frame of each clip, to train a detector on",
    )
    return result


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    options = parser()
    args = options.parse_args(arguments)
    if args.seed < 0:
        options.error(f"argument --seed: {args.seed} is negative; choose 0 or more")
    height, width = SIZES[args.size]
    try:
        write_split(
            args.output,
            args.split,
            num_clips=args.clips,
            height=height,
            width=width,
            seed=args.seed,
            workers=args.workers,
            labelled_only=args.labelled_only,
        )
    except (ValueError, OSError) as error:
        options.error(str(error))


if __name__ == "__main__":
    main()
