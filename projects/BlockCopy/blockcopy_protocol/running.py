"""The parts of a command that runs methods side by side: config, warming, running and scoring."""

import argparse
import contextlib
import logging
import os

from detectron2.data import MetadataCatalog

from blockcopy_d2.engine import PolicyCheckpointer, setup
from blockcopy_d2.engine.arguments import (
    add_config_arguments,
    count,
    errors_end_the_program,
    positive,
)
from blockcopy_d2.engine.hooks import ProgressHook, ScoringError
from blockcopy_d2.engine.output_folder import set_aside
from blockcopy_d2.engine.stopping import finishing
from blockcopy_d2.evaluation import build_evaluator

from .loop import CourseHook, Measurement, MeasurementHook, PartialScoringHook, ProtocolLoop
from .report import markdown_table
from .results import ResultsHook

__all__ = [
    "add_run_arguments",
    "build_config",
    "distinct_targets",
    "endings",
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


@contextlib.contextmanager
def endings(args):
    """
    A context in which errors that a user can mend, Ctrl-C and SIGTERM end the program with one
    line.

    Args:
        args (Namespace): with the arguments of :func:`add_run_arguments`.
    """
    try:
        with errors_end_the_program():
            yield
    except KeyboardInterrupt:
        raise SystemExit(f"Interrupted: {args.output} has what was run.") from None


def distinct_targets(args):
    """
    Returns:
        list[float]: values of tau in order, each once.

    Raises:
        ValueError: two of them have the same name in results.
    """
    targets = sorted(set(args.targets))
    names = [f"{target:g}" for target in targets]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"Two --targets are {name} to six digits, which is their name in results: leave one"
                " out."
            )
    return targets


def build_config(args, *defaults):
    """
    Args:
        args (Namespace): with the arguments of :func:`add_run_arguments`.
        defaults (str): keys and values that ``args.opts`` may override.

    Returns:
        CfgNode: config of a run.

    Raises:
        ValueError: BlockCopy is off, it names several data sets, or nothing can be scored.
    """
    opts = ["MODEL.BLOCKCOPY.ENABLED", "True", "OUTPUT_DIR", args.output, *defaults, *args.opts]
    cfg = setup(argparse.Namespace(**{**vars(args), "opts": opts, "eval_only": True}))
    if not cfg.MODEL.BLOCKCOPY.ENABLED:
        raise ValueError(
            "MODEL.BLOCKCOPY.ENABLED is off in --opts; the protocol compares BlockCopy with dense:"
            " leave it out."
        )
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

    Returns:
        list[str]: why clips ended early.

    Raises:
        ValueError: no frame could be read.
    """
    dense = [method for method in methods if method.kind == "dense"]
    methods = [method for method in methods if method.learner is not None]
    suffix, loop, failures = "_unfinished", None, {}
    try:
        for index in range(passes):
            loop = ProtocolLoop(model, loader, (dense if courses else []) + methods)
            title = f"Warming {len(methods)} policies, {index + 1}/{passes}"
            recorders = [CourseHook(courses)] if courses else []
            loop.register_hooks([*recorders, ProgressHook(title)])
            loop.train()
            _check_frames(loop, cfg.DATASETS.TRAIN[0])
            failures.update(dict.fromkeys(map(str, loop.failures)))
        suffix = ""
    finally:
        # A policy that has seen no frame is none.
        if loop is not None and loop.frames:
            with finishing("saving the policies"):
                _save_policies(methods, cfg.OUTPUT_DIR, suffix)
    return list(failures)


def _save_policies(methods, folder, suffix):
    for method in methods:
        saver = PolicyCheckpointer(method.policy, folder, learner=method.learner)
        saver.save(f"{method.file_name}{suffix}")


def _check_frames(loop, dataset_name):
    """Raises ValueError if no frame could be read."""
    if not loop.frames:
        raise ValueError(f"No frame of {dataset_name} could be run. {loop.failures[0]}")


def load_policies(folder, methods):
    """Take the policies that an earlier run left in a folder."""
    for method in methods:
        if method.learns:
            path = os.path.join(folder, f"{method.file_name}.pth")
            if not os.path.isfile(path):
                raise FileNotFoundError(_missing_policy(folder, method))
            PolicyCheckpointer(method.policy, learner=method.learner).load(path)


def _missing_policy(folder, method):
    text = f"--resume needs {method.file_name}.pth in {folder}, the policy of {method.name}."
    unfinished = f"{method.file_name}_unfinished.pth"
    if not os.path.isdir(folder):
        return f"{text} There is no such folder."
    if os.path.isfile(os.path.join(folder, unfinished)):
        return (
            f"{text} Its warming ended early and left {unfinished}: rename that to take it as it"
            " is, or leave --resume out to warm it anew."
        )
    found = sorted(name for name in os.listdir(folder) if name.endswith(".pth"))
    return (
        f"{text} The policies there are {', '.join(found) or 'none'}: give the --targets, --seeds"
        " and policies that they were warmed with, or leave --resume out."
    )


def _folder_of(method, output_dir):
    """str: folder for files of the evaluator of a method, such as a submission."""
    return os.path.join(output_dir, "inference", method.name.replace(" ", "_"))


def run_methods(cfg, model, methods, loader, description, warm_courses):
    """
    Run and score all methods on the test clips; the policies go on learning. Results of an earlier
    run in the output folder are set aside.

    Raises:
        ValueError: no frame could be read.
        ScoringError: some of the methods have no score.
    """
    (name,) = cfg.DATASETS.TEST
    set_aside(os.path.join(cfg.OUTPUT_DIR, "results.json"))
    measurements = {method.name: Measurement() for method in methods}
    scoring = PartialScoringHook(
        {
            method.name: build_evaluator(cfg, name, _folder_of(method, cfg.OUTPUT_DIR))
            for method in methods
        }
    )
    known = {"description": description, "warm_courses": warm_courses}
    results = ResultsHook(cfg.OUTPUT_DIR, methods, measurements, scoring, **known)
    loop = ProtocolLoop(model, loader, methods)
    progress = ProgressHook(f"Running {len(methods)} methods")
    measuring = MeasurementHook(measurements, include_loading=description["include_loading"])
    loop.register_hooks([measuring, scoring, progress, results])
    try:
        loop.train()
    finally:
        if results.results is not None:
            logging.getLogger("blockcopy_d2").info(
                "Results, to be found in %s:\n\n%s",
                cfg.OUTPUT_DIR,
                markdown_table(results.results),
            )
    _check_frames(loop, name)
    if scoring.failures:
        reasons = "\n".join(f"{method}: {why}" for method, why in scoring.failures.items())
        raise ScoringError(
            f"All clips were run, but not all methods could be scored. {cfg.OUTPUT_DIR} has their"
            f" cost.\n{reasons}"
        )
