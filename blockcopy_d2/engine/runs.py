"""The two jobs of train_net.py with BlockCopy on: warming a policy, evaluating on clips."""

import os

from detectron2.data import MetadataCatalog
from detectron2.engine import hooks as d2_hooks
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import JSONWriter, TensorboardXWriter

import blockcopy_d2.modeling  # noqa: F401  registers the model
from blockcopy_d2.config import base_config
from blockcopy_d2.data import build_clip_loader
from blockcopy_d2.evaluation import build_evaluator
from blockcopy_d2.evaluation.summary import RunRecord, remove_summary

from .checkpoint import PolicyCheckpointer, WeightsCheckpointer
from .hooks import (
    ComparisonHook,
    EfficiencyHook,
    GainShareHook,
    OnlinePolicyHook,
    PolicySavingHook,
    ProgressHook,
    ScoringError,
    ScoringHook,
)
from .loop import EvaluationLoop
from .output_folder import set_aside
from .reporting import FrameDrawer, GridImageHook, OverlayHook, SummaryHook
from .results_hook import ResultsHook

__all__ = [
    "build_learner",
    "build_video_model",
    "evaluate_clips",
    "warm_policy",
]


def build_video_model(cfg):
    """
    Build the model of ``cfg``, with the weights that it names.

    Args:
        cfg (CfgNode): with BlockCopy enabled.

    Returns:
        tuple[BlockCopyVideoModel, OnlineLearner or None]: the learner of the model's policy, if
        there is anything to learn.
    """
    model = build_model(cfg)
    WeightsCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model, build_learner(cfg, model.policy)


def build_learner(cfg, policy):
    """
    Load the weights of a policy that ``cfg`` names, and build its learner.

    Args:
        cfg (CfgNode): with BlockCopy enabled.
        policy (Policy): on the device where it will stay.

    Returns:
        OnlineLearner or None: None if there is nothing to learn.
    """
    options, learner = cfg.MODEL.BLOCKCOPY, None
    if options.LEARNER.ENABLED and policy.learns:
        learner = policy.learner_class(cfg, policy)
    if options.POLICY.WEIGHTS and policy.learns:
        PolicyCheckpointer(policy, learner=learner).load(options.POLICY.WEIGHTS)
    return learner


def warm_policy(cfg, *, resume=False):
    """
    Let a policy learn on ``INPUT.CLIP.NUM_CLIPS`` clips of the data set in ``cfg.DATASETS.TRAIN``
    and save it with its learner as policy_final.pth in ``cfg.OUTPUT_DIR``, for
    ``MODEL.BLOCKCOPY.POLICY.WEIGHTS``. If the run ends early, as by Ctrl-C or SIGTERM, the policy
    is saved under the number of its last frame.

    Args:
        cfg (CfgNode): with BlockCopy enabled.
        resume (bool): go on from the last checkpoint in ``cfg.OUTPUT_DIR`` that can be read.

    Returns:
        OnlineLearner:

    Raises:
        RunStopped: Ctrl-C or SIGTERM ended the run.
    """
    if len(cfg.DATASETS.TRAIN) != 1:
        raise ValueError(
            f"A policy is warmed on one data set of clips; DATASETS.TRAIN is {cfg.DATASETS.TRAIN}."
        )
    remove_summary(cfg.OUTPUT_DIR)
    model, learner = build_video_model(cfg)
    if learner is None:
        raise ValueError(
            f"There is nothing to warm: {cfg.MODEL.BLOCKCOPY.POLICY.NAME} does not learn, or"
            " MODEL.BLOCKCOPY.LEARNER.ENABLED is off."
        )
    checkpointer = PolicyCheckpointer(model.policy, cfg.OUTPUT_DIR, learner=learner)
    start = 0
    if resume:
        # A policy that was saved without its position in a run begins at the first frame.
        start = (checkpointer.resume() or {}).get("iteration", -1) + 1
    if start == 0:
        _set_metrics_aside(cfg.OUTPUT_DIR)
    (name,) = cfg.DATASETS.TRAIN
    loop = EvaluationLoop(model, build_clip_loader(cfg, name), learner=learner)
    loop.register_hooks(
        [
            OnlinePolicyHook(),
            EfficiencyHook(RunRecord()),
            *_common_hooks(cfg, name, checkpointer, cfg.OUTPUT_DIR, title=f"Warming on {name}"),
        ]
    )
    loop.train(start)
    return learner


def evaluate_clips(cfg, *, resume=False):
    """
    Run and score the clips of every data set in ``cfg.DATASETS.TEST``. The policy goes on learning,
    from one data set to the next as well. Leaves blockcopy_summary.json, metrics.json, TensorBoard
    events, with a picture of the executed blocks every ``cfg.VIS_PERIOD`` frames, and, if asked
    for, overlay.mp4 in ``cfg.OUTPUT_DIR``, or in a folder per data set if there are several. The
    summary of an earlier run, which may have another config, is removed first. Its metrics.json is
    renamed to metrics.1.json, and so on.

    Measurements are kept if the run ends early, and if it cannot be scored.

    Args:
        cfg (CfgNode): with BlockCopy enabled.
        resume (bool): take the policy from the last checkpoint in ``cfg.OUTPUT_DIR`` that can be
            read.

    Returns:
        dict: {data set: {task: {metric: value}}} of BlockCopy; with one data set only its part.
        Empty on ranks other than the first.

    Raises:
        RunStopped: Ctrl-C or SIGTERM ended the run.
        ScoringError: all data sets were run, but not all could be scored.
    """
    output_dirs = _output_dirs(cfg)
    for output_dir in {cfg.OUTPUT_DIR, *output_dirs.values()}:
        remove_summary(output_dir)
    for output_dir in output_dirs.values():
        _set_metrics_aside(output_dir)
    model, learner = build_video_model(cfg)
    checkpointer = PolicyCheckpointer(model.policy, cfg.OUTPUT_DIR, learner=learner)
    if resume:
        checkpointer.resume()
    stock = _build_stock(cfg) if "stock" in cfg.TEST.BLOCKCOPY.COMPARE else None
    results, unscored = {}, []
    for name, output_dir in output_dirs.items():
        record = RunRecord()
        scoring = ScoringHook(_build_evaluators(cfg, name, output_dir))
        loop = EvaluationLoop(model, build_clip_loader(cfg, name), learner=learner)
        loop.register_hooks(
            [
                OnlinePolicyHook() if learner else None,
                *_comparison_hooks(cfg, record, stock),
                EfficiencyHook(record),
                scoring,
                _build_results(cfg, name, output_dir),
                _build_overlay(cfg, name, output_dir),
                *_common_hooks(
                    cfg,
                    name,
                    checkpointer if learner else None,
                    output_dir,
                    title=f"Running {name}",
                ),
                SummaryHook(
                    record,
                    scoring=scoring,
                    target=cfg.MODEL.BLOCKCOPY.TARGET,
                    output_dir=output_dir,
                ),
            ]
        )
        loop.train()
        results[name] = scoring.scores.get("blockcopy") or {}
        unscored += [
            f"{name}, {model_name}: {reason}" for model_name, reason in scoring.failures.items()
        ]
    if unscored:
        raise ScoringError(
            "All clips were run, but not all outputs could be scored. The measurements are in"
            f" {cfg.OUTPUT_DIR}.\n" + "\n".join(unscored)
        )
    return results if len(results) > 1 else next(iter(results.values()), {})


def _output_dirs(cfg):
    """dict[str, str]: by data set."""
    names = cfg.DATASETS.TEST
    if len(names) == 1:
        return {names[0]: cfg.OUTPUT_DIR}
    return {name: os.path.join(cfg.OUTPUT_DIR, name) for name in names}


def _set_metrics_aside(output_dir):
    """Renames the metrics.json of an earlier run, to which this one's would be appended."""
    if comm.is_main_process():
        set_aside(os.path.join(output_dir, "metrics.json"))


def _build_stock(cfg):
    stock = build_model(base_config(cfg)).eval()
    WeightsCheckpointer(stock).load(cfg.MODEL.WEIGHTS)
    return stock


def _build_evaluators(cfg, dataset_name, output_dir):
    names = ["blockcopy"] + ["dense"] * ("dense" in cfg.TEST.BLOCKCOPY.COMPARE)
    return {
        name: build_evaluator(cfg, dataset_name, os.path.join(output_dir, "inference", name))
        for name in names
    }


def _comparison_hooks(cfg, record, stock):
    compare = cfg.TEST.BLOCKCOPY.COMPARE
    if not compare:
        return []
    dense = "dense" in compare
    return [
        ComparisonHook(dense=dense, stock=stock),
        GainShareHook(record.gain_share) if dense else None,
    ]


def _build_results(cfg, dataset_name, output_dir):
    options = cfg.TEST.BLOCKCOPY
    if not options.RESULTS:
        return None
    return ResultsHook(
        os.path.join(output_dir, "results"),
        format=options.RESULTS,
        metadata=MetadataCatalog.get(dataset_name),
        track=options.TRACK,
        fps=options.OVERLAY_FPS,
    )


def _build_overlay(cfg, dataset_name, output_dir):
    options = cfg.TEST.BLOCKCOPY
    if not options.OVERLAY_CLIPS or not comm.is_main_process():
        return None
    return OverlayHook(
        os.path.join(output_dir, "overlay.mp4"),
        FrameDrawer(cfg, dataset_name),
        num_clips=options.OVERLAY_CLIPS,
        fps=options.OVERLAY_FPS,
    )


def _common_hooks(cfg, dataset_name, checkpointer, output_dir, *, title):
    hooks = [ProgressHook(title)]
    if comm.is_main_process():
        if checkpointer is not None:
            hooks.append(PolicySavingHook(checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))
        if cfg.VIS_PERIOD > 0:
            drawer = FrameDrawer(cfg, dataset_name)
            hooks.append(GridImageHook(drawer, period=cfg.VIS_PERIOD))
        writers = [
            JSONWriter(os.path.join(output_dir, "metrics.json")),
            TensorboardXWriter(output_dir),
        ]
        hooks.append(d2_hooks.PeriodicWriter(writers, period=20))
    return hooks
