#!/usr/bin/env python3
"""
Shows a run of run_protocol.py, or of run_table_2.py, in README.md: its table and plots replace
those of the run before.

    python projects/BlockCopy/update_readme.py output/protocol/results.json

Several files are put together: those of one protocol that ran as a process per target or seed.
--times names those of a run of the same methods that had its device to itself.
"""

import blockcopy_d2.quiet_imports  # noqa: F401  isort:skip  comes before all others

import argparse
from pathlib import Path

from blockcopy_protocol.merging import merge_results
from blockcopy_protocol.report import embed_report, write_report
from blockcopy_protocol.results import DESCRIPTION, check_keys, read_results
from blockcopy_protocol.times import take_times


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", metavar="FILE", help="results.json of a run")
    parser.add_argument(
        "--times",
        nargs="+",
        metavar="FILE",
        help="results.json of a run with the same config, methods and machine, which had its"
        " device to itself: times come from there. It may have fewer clips, and one seed",
    )
    parser.add_argument(
        "--section",
        default="",
        metavar="NAME",
        help="where the README shows several runs: between <!-- NAME results: begin --> and end",
    )
    parser.add_argument(
        "--stages",
        action="store_true",
        help="show the stages of a frame (Table 3 of the paper) in place of the scores",
    )
    parser.add_argument(
        "--report",
        metavar="DIR",
        help="write tables and plots there, as a run does, and leave the README as it is",
    )
    parser.add_argument(
        "--readme",
        default=Path(__file__).with_name("README.md"),
        metavar="FILE",
        help="page to update",
    )
    return parser


def _read(paths):
    parts = [read_results(path) for path in paths]
    for path, part in zip(paths, parts):
        check_keys(part, ["complete"], path)
    merged = merge_results(parts)
    check_keys(merged, DESCRIPTION, paths[0])
    return merged


def main(argv=None):
    args = get_parser().parse_args(argv)
    try:
        results = _read(args.results)
        if args.times:
            results = take_times(results, _read(args.times))
        if args.report is not None:
            write_report(results, args.report)
        else:
            embed_report(results, args.readme, args.section, stages=args.stages)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
