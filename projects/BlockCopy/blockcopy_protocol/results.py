"""Measurements of a run of the protocol, with everything needed to read and repeat it."""

import dataclasses
import datetime
import json
import logging
import os
import platform
import shutil
import subprocess

import detectron2
import numpy as np
import torch
import yaml
from detectron2.engine import HookBase

import blockcopy_d2
from blockcopy_d2.atomic import atomic_write
from blockcopy_d2.data import redact, redact_words
from blockcopy_d2.engine.machine import processor_name
from blockcopy_d2.evaluation.summary import headline

from .course import Course
from .merging import mean
from .methods import BASELINES
from .report import write_report

__all__ = ["DESCRIPTION", "ResultsHook", "check_keys", "describe_run", "read_results"]

# Content that every version has written, and tables and plots need.
DESCRIPTION = (
    *("config_file", "dataset", "train_dataset", "warm_clips", "warm_passes", "date", "machine"),
    *("versions", "complete", "clips", "frames", "metrics"),
)


class ResultsHook(HookBase):
    """
    Writes results.json at the end of every clip, so that a run that is killed leaves the cost of
    earlier clips. The end of a run, even an early one, adds accuracy, results.md and the plots.
    Register it after the hooks that measure and score.

    Attributes:
        results (dict): content of the file as last written.
    """

    def __init__(
        self, output_dir, methods, measurements, scoring, *, description, warm_courses=None
    ):
        """
        Args:
            output_dir (str): folder of the files.
            methods (list[Method]): a row for those of the same kind and target.
            measurements (dict[str, Measurement]): by the name of the method.
            scoring (PartialScoringHook):
            description (dict): from :func:`describe_run`.
            warm_courses (dict[str, Course] or None): courses of methods while they were warmed, by
                the name of the method.
        """
        self.results = None
        self._output_dir = output_dir
        self._methods = methods
        self._measurements = measurements
        self._scoring = scoring
        self._description = description
        self._warm_courses = warm_courses or {}
        self._frames = 0
        self._clips = 0

    def after_step(self):
        trainer = self.trainer
        if trainer.runs:
            self._frames += 1
            if trainer.inputs["frame_index"] + 1 == trainer.inputs["clip_length"]:
                self._clips += 1
                self._keep()

    def after_train(self):
        scored = self._scoring.scores and not self._scoring.failures
        self._write(complete=self.trainer.finished and bool(scored))
        write_report(self.results, self._output_dir)

    def _keep(self):
        """Writes the file between two clips. A run does not end because that fails."""
        try:
            self._write(complete=False)
        except OSError as error:
            logging.getLogger("blockcopy_d2").error(
                "results.json cannot be written to %s: %s. The run goes on, and tries again after"
                " the next clip.",
                self._output_dir,
                error.strerror,
            )

    def _write(self, complete):
        # Test splits have no scores, and so no metrics.
        scores = {
            name: headline(scores) if scores else {}
            for name, scores in self._scoring.scores.items()
        }
        metrics = list(next(iter(scores.values()), {}))
        rows, courses, warm_courses, methods = {}, {}, {}, {}
        for method in self._methods:
            methods.setdefault(method.row, []).append(method)
            scored = scores.get(method.name, dict.fromkeys(metrics))
            found = {**scored, **self._measurements[method.name].summary()}
            if method.skips and found:
                found["ms_median"] = None
            rows.setdefault(method.row, []).append(found)
            courses.setdefault(method.row, []).append(self._measurements[method.name].course)
            if method.name in self._warm_courses:
                warmed = self._warm_courses[method.name]
                warm_courses.setdefault(method.row, []).append(warmed)
        self.results = {
            **self._description,
            "complete": complete,
            "clips": self._clips,
            "frames": self._frames,
            "failed_clips": [str(error) for error in self.trainer.failures],
            **({"not_scored": self._scoring.failures} if self._scoring.failures else {}),
            "metrics": metrics,
            "rows": [
                {
                    "method": kind,
                    "target": target,
                    "draws": methods[kind, target][0].draws,
                    **_variant(methods[kind, target][0].variant),
                    **mean(found),
                    **_each(methods[kind, target], found),
                    "course": Course.points(courses[kind, target]),
                    **_warm_course(warm_courses.get((kind, target))),
                }
                for (kind, target), found in rows.items()
            ],
        }
        # A run that ends while writing leaves the file of the clip before.
        path = os.path.join(self._output_dir, "results.json")
        with atomic_write(path) as temporary, open(temporary, "w") as f:
            json.dump(self.results, f, indent=2)


def _variant(variant):
    return {} if variant is None else {"variant": dataclasses.asdict(variant)}


def _warm_course(courses):
    return {"warm_course": Course.points(courses)} if courses else {}


def _each(methods, rows):
    """dict: values of each method of a row, if there are several, named after their difference."""
    if len(rows) == 1:
        return {}
    baseline = BASELINES.get(methods[0].kind)
    if baseline is not None and baseline.period > 1:
        return {"phases": rows}
    if methods[0].draws:
        return {"seeds": rows}
    return {"targets": [{"target": x.own_target, **row} for x, row in zip(methods, rows)]}


def describe_run(cfg, args):
    """
    Args:
        cfg (CfgNode): config of the run.
        args (Namespace): the command line.

    Returns:
        dict: for JSON: config, data sets, date, machine and versions.
    """
    options = cfg.MODEL.BLOCKCOPY
    return {
        "config_file": args.config_file,
        "opts": [redact(opt) for opt in args.opts],
        "dataset": cfg.DATASETS.TEST[0],
        "train_dataset": cfg.DATASETS.TRAIN[0],
        "weights": redact(cfg.MODEL.WEIGHTS),
        "policy": options.POLICY.NAME,
        "policy_weights": redact(options.POLICY.WEIGHTS),
        "other_policies": {name: redact(weights) for name, weights in args.policies},
        "warm_clips": args.warm_clips,
        "warm_passes": args.warm_passes,
        "seeds": args.seeds,
        "include_loading": args.include_loading,
        "timed": not args.untimed,
        "revision": _revision(),
        "blockcopy": yaml.safe_load(redact_words(options.dump())),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": {
            "processor": processor_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": _device(cfg.MODEL.DEVICE),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "detectron2": detectron2.__version__,
            "blockcopy_d2": blockcopy_d2.__version__,
        },
    }


def read_results(path):
    """
    Args:
        path (str): path of results.json.

    Returns:
        dict:

    Raises:
        OSError, ValueError: there is no such file, or it is not one of the protocol's.
    """
    with open(path, "rb") as f:
        try:
            results = json.load(f)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON: {error}. Is the file whole?") from error
    rows = results.get("rows") if isinstance(results, dict) else None
    if not (isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)):
        raise ValueError(f'{path} has no "rows": it is not a results.json of run_protocol.py.')
    for row in rows:
        check_keys(row, ("method", "target"), f"A row of {path}")
    return results


def check_keys(content, keys, name):
    """
    Args:
        content (dict): part of results.json.
        keys (iterable[str]): keys that it must have.
        name (str): name of the file or part, for the message.

    Raises:
        ValueError: one of them is missing.
    """
    missing = [key for key in keys if key not in content]
    if missing:
        raise ValueError(
            f"{name} has no {', '.join(missing)}: it was made by another version of"
            " run_protocol.py. Run the protocol anew."
        )


def _revision():
    """str or None: of this checkout; None without git or outside a checkout."""
    if shutil.which("git") is None:
        return None
    command = ["git", "rev-parse", "--short", "HEAD"]
    folder = os.path.dirname(os.path.abspath(__file__))
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def _device(name):
    device = torch.device(name)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
