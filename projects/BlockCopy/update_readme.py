#!/usr/bin/env python3
"""
Shows a run of run_protocol.py in README.md: its table and plots replace those of the run before.

    python projects/BlockCopy/update_readme.py output/protocol/results.json
"""

import argparse
from pathlib import Path

from blockcopy_protocol.report import embed_report
from blockcopy_protocol.results import read_results


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", metavar="FILE", help="results.json of a run")
    parser.add_argument(
        "--section",
        default="",
        metavar="NAME",
        help="where the README shows several runs: between <!-- NAME results: begin --> and end",
    )
    parser.add_argument("--readme", default=Path(__file__).with_name("README.md"), metavar="FILE")
    args = parser.parse_args(argv)
    try:
        embed_report(read_results(args.results), args.readme, args.section)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
