"""Times of one run beside the accuracy of another, which shared its machine."""

import yaml
from detectron2.config import get_cfg

from blockcopy_d2 import add_blockcopy_config

from .merging import check_equal, shared_options
from .plots import title_of

__all__ = ["take_times"]

# Content of results.json in which both runs have to agree.
_SAME = ("config_file", "dataset", "train_dataset", "weights", "policy", "policy_weights")
# Description of the run with the times.
_DESCRIBED = ("clips", "frames", "date", "revision", "machine", "versions", "train_dataset")
_DESCRIBED += ("warm_clips", "warm_passes")
_MACHINE = ("processor", "cores", "device")
_TIMES = ("ms_median", "ms_mean", "ms_per_stage", "ms_block_lists")
# Executed shares of a method in both runs differ by less, or its times are not those of its scores.
_SHARE = 0.1


def take_times(results, timed):
    """
    Args:
        results (dict): content of results.json of the run that was scored. It may have been
            untimed.
        timed (dict): that of a run with the same config, methods and machine, which had its device
            to itself. It may have fewer clips and seeds, also of warming.

    Returns:
        dict: ``results`` with the times of ``timed``, and with its description under "times".

    Raises:
        ValueError: ``timed`` shared its machine, has another config or machine, lacks a method, or
            a method executed another share of the blocks in it.
    """
    if not timed.get("timed", True):
        raise ValueError("The run of --times was --untimed: it has no times to show.")
    for key in _SAME:
        _check(key, results, timed)
    defaults = _default_options()
    check_equal(
        "blockcopy", *(_filled(shared_options(x), defaults) for x in (results, timed)), _RULE
    )
    for key in _MACHINE:
        _check(key, results["machine"], timed["machine"])
    policies = timed.get("other_policies", {})
    for name, weights in results.get("other_policies", {}).items():
        check_equal(f"the weights of {name}", weights, policies.get(name), _RULE)
    known = {(row["method"], row["target"]): row for row in timed["rows"]}
    rows = [{**row, **_times_of(row, known)} for row in results["rows"]]
    described = {key: timed[key] for key in _DESCRIBED if key in timed}
    return {**results, "timed": True, "times": described, "rows": rows}


def _default_options():
    cfg = get_cfg()
    add_blockcopy_config(cfg)
    return yaml.safe_load(cfg.MODEL.BLOCKCOPY.dump())


def _filled(options, defaults):
    """Returns options with keys that are newer than the run: their defaults change nothing."""
    filled = {**defaults, **options}
    nested = [key for key, value in filled.items() if isinstance(value, dict)]
    return {**filled, **{key: _filled(filled[key], defaults.get(key, {})) for key in nested}}


def _times_of(row, known):
    target = row["target"]
    name = title_of(row["method"]) + ("" if target is None else f" at target {target:g}")
    timed = known.get((row["method"], target))
    if timed is None or timed.get("ms_mean") is None:
        raise ValueError(
            f"The run of --times has no times of {name}: run it with the targets, --baselines and"
            " --policies of the run that was scored."
        )
    shares = [run.get("executed_fraction") for run in (row, timed)]
    if None not in shares and abs(shares[0] - shares[1]) > _SHARE:
        raise ValueError(
            f"{name} executed {shares[0]:.3f} of the blocks in the run that was scored and"
            f" {shares[1]:.3f} in the run of --times: warm its policy alike, or run more clips."
        )
    return {key: timed.get(key) for key in _TIMES}


_RULE = "Times are those of a run with the same config, methods and machine."


def _check(key, results, timed):
    check_equal(key, results.get(key), timed.get(key), _RULE)
