#!/usr/bin/env python3
"""
Draws how policies learn on several data sets: gain share and executed share over the frames of runs
of run_protocol.py, a column for each.

    python projects/BlockCopy/draw_courses.py StreetClips=output/street/results.json \\
        CamVid=output/camvid/results.json --output courses.png
"""

import blockcopy_d2.quiet_imports  # noqa: F401  isort:skip  comes before all others

import argparse

from blockcopy_protocol.course import drawn_rows, plot_courses
from blockcopy_protocol.results import read_results

from blockcopy_d2.engine.arguments import errors_end_the_program
from blockcopy_d2.engine.outputs import check_plot, refuse_overwriting


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", metavar="TITLE=FILE", help="title of a column, results.json of its run"
    )
    parser.add_argument(
        "--output", default="courses.png", metavar="FILE", help="the picture to write (%(default)s)"
    )
    return parser


def main(argv=None):
    parser = get_parser()
    args = parser.parse_args(argv)
    parts = [run.partition("=") for run in args.runs]
    for run, (title, _, path) in zip(args.runs, parts):
        if not (title and path):
            parser.error(f"{run!r} is not TITLE=FILE, such as CamVid=output/camvid/results.json")
        if [title for title, _, _ in parts].count(title) > 1:
            parser.error(f"two runs have the title {title!r}: expected one for each")
    with errors_end_the_program():
        refuse_overwriting(args.output, [path for _, _, path in parts])
        check_plot(args.output)
        runs = {title: read_results(path) for title, _, path in parts}
        for (_, _, path), results in zip(parts, runs.values()):
            if not drawn_rows(results):
                raise ValueError(
                    f"{path} has no method with a course: it has too few frames, or an older"
                    " version made it. Run the protocol anew, with --targets."
                )
        plot_courses(runs, args.output)


if __name__ == "__main__":
    main()
