"""The parts of a command that runs methods side by side: config, warming, running and scoring."""

import argparse
import logging
import os

from detectron2.data import MetadataCatalog

from blockcopy_d2.engine import PolicyCheckpointer, setup
from blockcopy_d2.engine.arguments import add_config_arguments, count, positive
from blockcopy_d2.engine.hooks import ProgressHook
from blockcopy_d2.evaluation import build_evaluator

from .loop import CourseHook, Measurement, MeasurementHook, PartialScoringHook, ProtocolLoop
from .report import markdown_table
from .results import ResultsHook

__all__ = [
    "add_run_arguments",
    "build_config",
    "load_policies",
    "run_methods",
    "warm_policies",
]


def add_run_arguments(parser, *, output):
    """
    Add the arguments that such commands share.

    Args:
        parser (ArgumentParser):
        output (str): default folder of the results.
    """
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
        "--output",
        default=output,
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


def build_config(args, *defaults):
    """
    Args:
        args (Namespace): with the arguments of :func:`add_run_arguments`.
        defaults (str): keys and values that ``args.opts`` may override.

    Returns:
        CfgNode: config of a run.

    Raises:
        ValueError: it names several data sets, or nothing can be scored.
    """
    opts = ["MODEL.BLOCKCOPY.ENABLED", "True", "OUTPUT_DIR", args.output, *defaults, *args.opts]
    cfg = setup(argparse.Namespace(**{**vars(args), "opts": opts, "eval_only": True}))
    for key in ("TRAIN", "TEST"):
        if len(cfg.DATASETS[key]) != 1:
            raise ValueError(
                f"DATASETS.{key} is {cfg.DATASETS[key]}; the protocol takes one data set of clips."
            )
    evaluator_type = MetadataCatalog.get(cfg.DATASETS.TEST[0]).get("evaluator_type")
    if evaluator_type == "cityscapes_video_instance" and not cfg.MODEL.MASK_ON:
        raise ValueError("MODEL.MASK_ON is off; the protocol scores the masks of instances.")
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
