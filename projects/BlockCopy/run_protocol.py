#!/usr/bin/env python3
"""
Runs the paper's protocol: warms a policy per target on training clips, then runs the clips of
DATASETS.TEST with every method side by side and scores their labelled frames:

    python projects/BlockCopy/run_protocol.py --warm-clips 20 --clips 20 --targets 0.3 0.5 0.7

Leaves results.json, results.md and plots. Ctrl-C ends the run early and scores the frames so far;
policies that are being warmed are saved as policy_<target>_unfinished.pth.
"""

import blockcopy_d2.quiet_imports  # noqa: F401  isort:skip  comes before all others

import argparse
import signal

from blockcopy_protocol.course import Course
from blockcopy_protocol.methods import BASELINES, build_methods
from blockcopy_protocol.results import describe_run
from blockcopy_protocol.running import (
    add_run_arguments,
    build_config,
    distinct_targets,
    endings,
    load_policies,
    run_methods,
    warm_policies,
)

from blockcopy_d2.data import build_clip_loader
from blockcopy_d2.engine import build_video_model
from blockcopy_d2.engine.arguments import fraction, positive
from blockcopy_d2.policy.build import check_policy_name


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_run_arguments(parser, output="./output/protocol")
    parser.add_argument(
        "--targets",
        type=fraction,
        nargs="+",
        default=[0.3, 0.5, 0.7],
        metavar="TAU",
        help="fractions of blocks to execute (0.3 0.5 0.7)",
    )
    parser.add_argument(
        "--seeds",
        type=positive,
        default=1,
        metavar="S",
        help="runs of every method at each target, which differ in the seed of their draws, or, if"
        " they draw nothing, in a target within 2 %% of TAU; tables and plots show mean and"
        " standard deviation (%(default)s)",
    )
    parser.add_argument(
        "--baselines",
        nargs="*",
        choices=[*BASELINES, "all"],
        default=["random", "frame_difference"],
        help="methods to compare with; random and frame_difference at every target (these two)",
    )
    parser.add_argument(
        "--policies",
        type=_policy,
        nargs="+",
        default=[],
        metavar="NAME[=WEIGHTS]",
        help="further policies that learn, at every target beside that of the config, such as"
        " LearnedPolicy; from scratch or from weights of their own",
    )
    parser.add_argument(
        "--warm-course",
        action="store_true",
        help="measure gain share and executed share while policies are warmed, too: the dense"
        " network runs beside them, and course.png begins with the first update",
    )
    return parser


def _policy(text):
    name, _, weights = text.partition("=")
    try:
        check_policy_name(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return name, weights


def run(args):
    """Runs the protocol in its three steps: builds the methods, warms their policies, runs all."""
    warm = args.warm_clips > 0 and args.resume is None
    targets, cfg = distinct_targets(args), build_config(args)
    if args.warm_clips and not cfg.MODEL.BLOCKCOPY.LEARNER.ENABLED:
        raise ValueError(
            "MODEL.BLOCKCOPY.LEARNER.ENABLED is off, so no policy can be warmed: use"
            " --warm-clips 0 to run them as their weights are."
        )
    test_loader = build_clip_loader(cfg, cfg.DATASETS.TEST[0], args.clips)
    if warm:
        train_loader = build_clip_loader(cfg, cfg.DATASETS.TRAIN[0], args.warm_clips)
    model, _ = build_video_model(cfg)
    methods = build_methods(
        cfg,
        model,
        targets=targets,
        baselines=BASELINES if "all" in args.baselines else dict.fromkeys(args.baselines),
        policies=dict(args.policies),
        seeds=args.seeds,
    )
    if args.resume is not None:
        load_policies(args.resume or cfg.OUTPUT_DIR, methods)
    courses, description = {}, describe_run(cfg, args)
    if args.warm_course:
        courses = {method.name: Course() for method in methods if method.learner is not None}
    if warm:
        failures = warm_policies(cfg, model, methods, train_loader, args.warm_passes, courses)
        if failures:
            description["failed_warm_clips"] = failures
    run_methods(cfg, model, methods, test_loader, description, courses)


def main(argv=None):
    parser = get_parser()
    args = parser.parse_args(argv)
    names = [name for name, _ in args.policies]
    for name in names:
        if names.count(name) > 1:
            parser.error(f"--policies has {name} twice; expected each policy once")
    with endings(args):
        run(args)


if __name__ == "__main__":
    # SIGTERM, which ends jobs that take too long, should leave results, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main()
