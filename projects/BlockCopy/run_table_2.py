#!/usr/bin/env python3
"""
Runs Table 2 of the paper: policies from scratch that see different inputs, a deeper one, and one
that learns on the training clips alone, side by side on the same task network and clips.

    python projects/BlockCopy/run_table_2.py --config-file configs/maskrcnn_blockcopy_paper.yaml \
        --warm-clips 20 --clips 20 --targets 0.3 --seeds 3

Leaves results.json, results.md with the table, and plots. Ctrl-C ends the run early and scores the
frames so far; policies that are being warmed are saved as policy_<row>_<target>_unfinished.pth.
"""

import blockcopy_d2.quiet_imports  # noqa: F401  isort:skip  comes before all others

import argparse
import signal

from blockcopy_protocol.methods import build_methods
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
from blockcopy_protocol.variants import TABLE_2, build_variants, take_warmed, with_teachers

from blockcopy_d2.data import build_clip_loader, redact
from blockcopy_d2.engine import build_video_model
from blockcopy_d2.engine.arguments import fraction, positive


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_run_arguments(parser, output="./output/table_2")
    parser.add_argument(
        "--targets",
        type=fraction,
        nargs="+",
        default=[0.3],
        metavar="TAU",
        help="fractions of blocks to execute; each has all rows (0.3)",
    )
    parser.add_argument(
        "--seeds",
        type=positive,
        default=1,
        metavar="S",
        help="policies per row and target, which differ in the seed of their first weights and"
        " draws: MODEL.BLOCKCOPY.POLICY.SEED and the next; table and plot show mean and standard"
        " deviation (%(default)s)",
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=TABLE_2,
        default=list(TABLE_2),
        metavar="ROW",
        help="rows to run: frame, previous_frame, frame_state, output (each adds an input), full"
        " (the paper's policy), offline (the same, not learning while it is scored), resnet_20"
        " (all of them)",
    )
    # An option that only the protocol has.
    parser.set_defaults(policies=[])
    return parser


def check_config(cfg, args):
    """
    Raises:
        ValueError: the rows would not be those of Table 2.
    """
    options = cfg.MODEL.BLOCKCOPY
    policy = options.POLICY
    if policy.NAME != "LearnedPolicy":
        raise ValueError(
            f"MODEL.BLOCKCOPY.POLICY.NAME is {policy.NAME}; Table 2 is about LearnedPolicy. For the"
            " paper's settings add --opts MODEL.BLOCKCOPY.POLICY.NAME LearnedPolicy"
            " MODEL.BLOCKCOPY.MOTION.NAME none."
        )
    if policy.WEIGHTS:
        raise ValueError(
            f"MODEL.BLOCKCOPY.POLICY.WEIGHTS is {redact(policy.WEIGHTS)}; the policies of Table 2"
            " start from scratch, since weights fit one network only. Leave the key out."
        )
    full = TABLE_2["full"]
    for key, expected in (("INPUTS", list(full.inputs)), ("DEPTH", full.depth)):
        if policy[key] != expected:
            raise ValueError(
                f"MODEL.BLOCKCOPY.POLICY.{key} is {policy[key]}; the rows of Table 2 set it."
                f" Leave it at {expected} and choose --rows."
            )
    if not options.LEARNER.ENABLED or not args.warm_clips:
        raise ValueError(
            "Table 2 needs policies that have learned: leave MODEL.BLOCKCOPY.LEARNER.ENABLED on,"
            " and --warm-clips at 1 or more."
        )


def run(args):
    """Runs Table 2 in its three steps: builds the policies, warms them, runs and scores all."""
    # Configs may name the weights of one policy, which do not fit the others.
    targets, cfg = distinct_targets(args), build_config(args, "MODEL.BLOCKCOPY.POLICY.WEIGHTS", "")
    check_config(cfg, args)
    test_loader = build_clip_loader(cfg, cfg.DATASETS.TEST[0], args.clips)
    if args.resume is None:
        train_loader = build_clip_loader(cfg, cfg.DATASETS.TRAIN[0], args.warm_clips)
    model, _ = build_video_model(cfg)
    policies = build_variants(
        cfg, model, with_teachers(args.rows), targets=targets, seeds=args.seeds
    )
    description = {**describe_run(cfg, args), "experiment": "table_2"}
    if args.resume is not None:
        learning = [method for method in policies if method.learner is not None]
        load_policies(args.resume or cfg.OUTPUT_DIR, learning)
    else:
        failures = warm_policies(cfg, model, policies, train_loader, args.warm_passes, {})
        if failures:
            description["failed_warm_clips"] = failures
    take_warmed(policies)
    rows = [method for method in policies if method.kind in args.rows]
    methods = build_methods(cfg, model, targets=()) + rows
    run_methods(cfg, model, methods, test_loader, description, {})


def main(argv=None):
    args = get_parser().parse_args(argv)
    with endings(args):
        run(args)


if __name__ == "__main__":
    # SIGTERM, which ends jobs that take too long, should leave results, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main()
