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
import logging
import os
import signal

from blockcopy_protocol.course import Course
from blockcopy_protocol.loop import (
    CourseHook,
    Measurement,
    MeasurementHook,
    PartialScoringHook,
    ProtocolLoop,
)
from blockcopy_protocol.methods import BASELINES, build_methods
from blockcopy_protocol.report import markdown_table
from blockcopy_protocol.results import ResultsHook, describe_run
from detectron2.data import MetadataCatalog

from blockcopy_d2.data import build_clip_loader
from blockcopy_d2.engine import PolicyCheckpointer, build_video_model, setup
from blockcopy_d2.engine.arguments import (
    add_config_arguments,
    count,
    errors_end_the_program,
    fraction,
    positive,
)
from blockcopy_d2.engine.hooks import ProgressHook
from blockcopy_d2.evaluation import build_evaluator
from blockcopy_d2.policy.build import check_policy_name


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--warm-clips",
        type=count,
        default=20,
        metavar="N",
        help="clips of DATASETS.TRAIN on which the policy of each target learns first, from the"
        " weights that MODEL.BLOCKCOPY.POLICY.WEIGHTS names. 0: those weights as they are"
        " (%(default)s)",
    )
    parser.add_argument(
        "--warm-passes",
        type=positive,
        default=1,
        metavar="P",
        help="run these clips P times, for data sets with few of them (%(default)s)",
    )
    parser.add_argument(
        "--clips",
        type=positive,
        metavar="M",
        help="clips of DATASETS.TEST to run (INPUT.CLIP.NUM_CLIPS of the config)",
    )
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
        "--include-loading",
        action="store_true",
        help="count the time until a frame has come from the loader, too, as the paper does; more"
        " DATALOADER.NUM_WORKERS make it shorter",
    )
    parser.add_argument(
        "--untimed",
        action="store_true",
        help="leave times out of tables and plots, for a run that shares the machine with others",
    )
    parser.add_argument(
        "--warm-course",
        action="store_true",
        help="measure gain share and executed share while policies are warmed, too: the dense"
        " network runs beside them, and course.png begins with the first update",
    )
    parser.add_argument(
        "--output",
        default="./output/protocol",
        metavar="DIR",
        help="folder of the results (%(default)s)",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="FROM",
        help="take the policies that an earlier run warmed, from the folder FROM; without one, from"
        " DIR",
    )
    return parser


def _policy(text):
    name, _, weights = text.partition("=")
    try:
        check_policy_name(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return name, weights


def build_config(args):
    opts = ["MODEL.BLOCKCOPY.ENABLED", "True", "OUTPUT_DIR", args.output, *args.opts]
    cfg = setup(argparse.Namespace(**{**vars(args), "opts": opts, "eval_only": True}))
    for key in ("TRAIN", "TEST"):
        if len(cfg.DATASETS[key]) != 1:
            raise ValueError(
                f"DATASETS.{key} is {cfg.DATASETS[key]}; the protocol takes one data set of clips."
            )
    evaluator_type = MetadataCatalog.get(cfg.DATASETS.TEST[0]).get("evaluator_type")
    if evaluator_type == "cityscapes_video_instance" and not cfg.MODEL.MASK_ON:
        raise ValueError("MODEL.MASK_ON is off; the protocol scores the masks of instances.")
    if args.warm_clips and not cfg.MODEL.BLOCKCOPY.LEARNER.ENABLED:
        raise ValueError(
            "MODEL.BLOCKCOPY.LEARNER.ENABLED is off, so no policy can be warmed: use --warm-clips 0"
            " to run them as their weights are."
        )
    return cfg


def warm_policies(cfg, model, methods, loader, passes, courses):
    """
    Let every policy that learns do so on training clips, and save it in the output folder. If that
    ends early, the name of its file ends in "_unfinished". Its course goes to ``courses`` if they
    have its name; the dense method runs for them.
    """
    dense = [method for method in methods if method.kind == "dense"]
    methods = [method for method in methods if method.learner is not None]
    suffix = "_unfinished"
    try:
        for index in range(passes):
            loop = ProtocolLoop(model, loader, (dense if courses else []) + methods)
            title = f"Warming {len(methods)} policies, {index + 1}/{passes}"
            recorders = [CourseHook(courses)] if courses else []
            loop.register_hooks([*recorders, ProgressHook(title)])
            loop.train()
        suffix = ""
    finally:
        for method in methods:
            saver = PolicyCheckpointer(method.policy, cfg.OUTPUT_DIR, learner=method.learner)
            saver.save(f"{method.file_name}{suffix}")


def load_policies(folder, methods):
    """Take the policies that an earlier run left in a folder."""
    for method in methods:
        if method.learns:
            path = os.path.join(folder, f"{method.file_name}.pth")
            PolicyCheckpointer(method.policy, learner=method.learner).load(path)


def run_methods(cfg, model, methods, loader, description, warm_courses):
    """Run and score all methods on the test clips; the policies go on learning."""
    (name,) = cfg.DATASETS.TEST
    measurements = {method.name: Measurement() for method in methods}
    scoring = PartialScoringHook(
        {method.name: build_evaluator(cfg, name, cfg.OUTPUT_DIR) for method in methods}
    )
    known = {"description": description, "warm_courses": warm_courses}
    results = ResultsHook(cfg.OUTPUT_DIR, methods, measurements, scoring, **known)
    loop = ProtocolLoop(model, loader, methods)
    progress = ProgressHook(f"Running {len(methods)} methods")
    measuring = MeasurementHook(measurements, include_loading=description["include_loading"])
    loop.register_hooks([measuring, scoring, progress, results])
    loop.train()
    logging.getLogger("blockcopy_d2").info(
        "Results, to be found in %s:\n\n%s", cfg.OUTPUT_DIR, markdown_table(results.results)
    )


def main(argv=None):
    args = get_parser().parse_args(argv)
    warm = args.warm_clips > 0 and args.resume is None
    with errors_end_the_program():
        cfg = build_config(args)
        test_loader = build_clip_loader(cfg, cfg.DATASETS.TEST[0], args.clips)
        if warm:
            train_loader = build_clip_loader(cfg, cfg.DATASETS.TRAIN[0], args.warm_clips)
        model, _ = build_video_model(cfg)
        methods = build_methods(
            cfg,
            model,
            targets=sorted(set(args.targets)),
            baselines=BASELINES if "all" in args.baselines else dict.fromkeys(args.baselines),
            policies=dict(args.policies),
            seeds=args.seeds,
        )
        if args.resume is not None:
            load_policies(args.resume or cfg.OUTPUT_DIR, methods)
    courses = {}
    if args.warm_course:
        courses = {method.name: Course() for method in methods if method.learner is not None}
    try:
        if warm:
            warm_policies(cfg, model, methods, train_loader, args.warm_passes, courses)
        run_methods(cfg, model, methods, test_loader, describe_run(cfg, args), courses)
    except KeyboardInterrupt:
        raise SystemExit(f"Interrupted: {cfg.OUTPUT_DIR} has what was run.") from None


if __name__ == "__main__":
    # SIGTERM, which ends jobs that take too long, should leave results, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main()
