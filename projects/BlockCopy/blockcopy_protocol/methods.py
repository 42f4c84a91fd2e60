"""The methods that the protocol compares: ways to save work on the same network."""

from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from blockcopy_d2.engine.loop import ModelRun
from blockcopy_d2.engine.runs import build_learner
from blockcopy_d2.modeling import StageTimer, StreamPool
from blockcopy_d2.motion import build_motion
from blockcopy_d2.policy import build_policy
from blockcopy_d2.sparse import BlockGrid

__all__ = ["BASELINES", "Baseline", "Method", "build_methods", "spread_targets"]


@dataclass(frozen=True)
class Baseline:
    """
    A method that BlockCopy is compared with.

    Attributes:
        policy (str): name in POLICY_REGISTRY; "" for PyTorch's dense network, without this engine.
        follows_target (bool): there is one for every tau, at the cost of BlockCopy.
        period (int): k, if every k-th frame is executed. There is a method for each of the k
            phases, and a row for their mean.
        scale (float): scale of the frames that the network gets.
        moved (bool): copied features move with the picture, by the config's estimator of motion, or
            by "auto" if it names none. Otherwise they stay in place.
        aged (bool): in MovedDifference, blocks gain weight with their age, as the config says.
    """

    policy: str
    follows_target: bool = False
    period: int = 1
    scale: float = 1.0
    moved: bool = False
    aged: bool = True


# Runs that differ in their target lie within this fraction of it.
TARGET_SPREAD = 0.02

# Name on the command line -> baseline.
BASELINES = {
    "stock": Baseline(""),
    "random": Baseline("RandomBlocks", follows_target=True),
    "frame_difference": Baseline("FrameDifference", follows_target=True),
    "every_second_frame": Baseline("AllBlocks", period=2),
    "every_third_frame": Baseline("AllBlocks", period=3),
    "every_fourth_frame": Baseline("AllBlocks", period=4),
    "three_quarters_resolution": Baseline("AllBlocks", scale=0.75),
    "half_resolution": Baseline("AllBlocks", scale=0.5),
    "quarter_resolution": Baseline("AllBlocks", scale=0.25),
    "moved_difference": Baseline("MovedDifference", follows_target=True, moved=True),
    "moved_difference_without_age": Baseline(
        "MovedDifference", follows_target=True, moved=True, aged=False
    ),
    "every_second_frame_moved": Baseline("EveryKthFrame", period=2, moved=True),
    "every_third_frame_moved": Baseline("EveryKthFrame", period=3, moved=True),
    "every_fourth_frame_moved": Baseline("EveryKthFrame", period=4, moved=True),
}


@dataclass(frozen=True)
class SkippedFrame:
    """
    Stands for the result of a frame that was not run.

    Attributes:
        grid (BlockGrid): without an executed block.
        macs_per_stage (dict[str, int]): all of them 0.
    """

    grid: BlockGrid
    macs_per_stage: dict


class StockMethod:
    """The task network as Detectron2 runs it, without blocks, to show the cost of blocks."""

    kind = name = "stock"
    target, learner, learns, skips, draws = None, None, False, False, False
    variant = None
    own_target, row = target, (kind, target)

    def warm_up(self, model, inputs):
        self.run(model, inputs)

    @torch.no_grad()
    def run(self, model, inputs):
        """
        Args:
            model (BlockCopyVideoModel): model whose wrapped network runs.
            inputs (dict): of :class:`blockcopy_d2.data.ClipMapper`.

        Returns:
            ModelRun: without a result, since there are no blocks.
        """
        image = {key: value for key, value in inputs.items() if key != "video_id"}
        timer = StageTimer(model.device)
        with timer.stage("stock"):
            (output,) = model([image])
        return ModelRun(output, macs=0, seconds=timer.seconds)


class Method:
    """
    A policy with everything that must not be shared: its streams and its learner. The task network
    is shared by all methods.
    """

    def __init__(
        self,
        kind,
        policy,
        *,
        target=None,
        learner=None,
        stages=None,
        scale=1.0,
        motion=None,
        period=1,
        phase=0,
        draws=False,
        seed=None,
        own_target=None,
        variant=None,
    ):
        """
        Args:
            kind (str): "dense", "blockcopy", one of ``BASELINES``, the name of a policy that learns
                beside the config's, or that of a variant.
            policy (Policy): picks the blocks.
            target (float or None): tau of its row.
            learner (OnlineLearner or None): learner of ``policy``.
            stages (tuple[str] or None): the stages of a frame whose time counts; None: all.
            scale (float): scale of the frames that the network gets. Outputs keep their size, and
                the time of the resizing does not count.
            motion (MotionEstimator or None): copied features move by its fields.
            period, phase (int): only every period-th frame is executed, from frame ``phase`` on,
                and the first of a clip. If nothing moves, the others are not run at all: their
                output is the last one, at no cost.
            draws (bool): whether the policy draws, so that another seed gives other results.
            seed (int or None): seed of the policy's draws, if there are methods with several.
            own_target (float or None): the target that the policy has, near ``target``, if it draws
                nothing; None: ``target``.
            variant (Variant or None): description of the policy, if the rows of a table differ in
                it.
        """
        self.variant = variant
        self.kind = kind
        self.policy = policy
        self.target = target
        self.learner = learner
        self.draws = draws
        self.own_target = target if own_target is None else own_target
        self._stages = stages
        self._scale = scale
        self._motion = motion
        self._period, self._phase = period, phase
        self._seed = seed
        self._last = None
        self._streams = StreamPool(max_streams=1)

    @property
    def row(self):
        """tuple: key of the row of results that methods share."""
        return self.kind, self.target

    @property
    def name(self):
        """str: unique among methods, such as "blockcopy 0.3"."""
        target = "" if self.target is None else f" {self.target:g}"
        phase = f" from {self._phase}" if self._period > 1 else ""
        return self.kind + target + phase + "".join(f" {word}" for word in self._own)

    @property
    def file_name(self):
        """str: of the checkpoint of its policy, without its ending."""
        name = "policy" if self.kind == "blockcopy" else f"policy_{self.kind}"
        return "_".join([name, f"{self.target:g}", *self._own])

    @property
    def _own(self):
        """list[str]: words in its name that the other methods of its row do not have."""
        if self.own_target != self.target:
            return ["at", f"{self.own_target:g}"]
        return ["seed", str(self._seed)] if self._seed else []

    def warm_up(self, model, inputs):
        """
        Let frames of this method be prepared and captured, which does not count as their cost.
        """
        model.policy, model.motion = self.policy, self._motion
        stream = self._streams.get(inputs["video_id"], 0)
        model.step(self._resize(inputs), stream)
        stream.reset()

    def run(self, model, inputs):
        """
        Run the next frame, and learn from it if there is a learner. Waits for the device, so that
        no method pays for the previous one.

        Args:
            model (BlockCopyVideoModel): its policy and motion are replaced by this method's.
            inputs (dict): of :class:`blockcopy_d2.data.ClipMapper`.

        Returns:
            ModelRun:
        """
        if self._is_skipped(inputs["frame_index"]):
            return self._last
        model.policy, model.motion = self.policy, self._motion
        inputs = self._resize(inputs)
        stream = self._streams.get(inputs["video_id"], inputs["frame_index"])
        run = ModelRun.of(model, inputs, stream, learner=self.learner)
        seconds = run.seconds()
        if self._stages:
            seconds = {stage: seconds[stage] for stage in self._stages}
        if self._period > 1:
            grid = run.result.grid
            layout = {"block_size": grid.block_size, "image_size": grid.image_size}
            nothing = dict.fromkeys(run.result.macs_per_stage, 0)
            empty = BlockGrid.empty(**layout, device=grid.active.device)
            skipped = SkippedFrame(empty, macs_per_stage=nothing)
            nothing = dict.fromkeys(seconds, 0.0)
            self._last = ModelRun(run.output, macs=0, seconds=lambda: nothing, result=skipped)
        return replace(run, seconds=lambda: seconds)

    @property
    def learns(self):
        """bool: whether its policy can be warmed, and kept."""
        return self.policy.learns

    @property
    def skips(self):
        """bool: whether some frames are skipped, so that a median would show only one kind."""
        return self._period > 1

    def _is_skipped(self, index):
        off_beat = index > 0 and (index - self._phase) % self._period
        return off_beat and self._motion is None

    def _resize(self, inputs):
        """A smaller image, each pixel an average of those it replaces."""
        if self._scale == 1:
            return inputs
        image = inputs["image"]
        size = [round(length * self._scale) for length in image.shape[-2:]]
        image = F.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True)[0]
        return {**inputs, "image": image}


def build_methods(cfg, model, *, targets, baselines=(), policies=None, seeds=1):
    """
    Args:
        cfg (CfgNode): with BlockCopy enabled; names a policy that learns.
        model (BlockCopyVideoModel): built from ``cfg``.
        targets (sequence[float]): values of tau.
        baselines (sequence[str]): keys of ``BASELINES``.
        policies (dict[str, str] or None): further policies that learn, by their names in
            POLICY_REGISTRY, and the paths of their weights ("": none).
        seeds (int): number of each method that follows a target. Those that draw blocks differ in
            the seed, from the config's on, the others in the target: see :func:`spread_targets`.

    Returns:
        list[Method]: dense and the baselines without a target; then for every target a policy that
        starts as a copy of the model's, the further policies and the other baselines.

    Raises:
        ValueError: the policy that ``cfg`` names, or one of ``policies``, does not learn.
    """
    methods = [_fixed_method("dense", Baseline("AllBlocks"), cfg, model)]
    chosen = {kind: BASELINES[kind] for kind in baselines}
    for kind, baseline in chosen.items():
        if not baseline.policy:
            methods.append(StockMethod())
        elif not baseline.follows_target:
            phases = range(baseline.period)
            methods += [_fixed_method(kind, baseline, cfg, model, phase) for phase in phases]
    for target in targets:
        own = _configure(cfg, cfg.MODEL.BLOCKCOPY.POLICY.NAME, target)
        methods += _learned_methods("blockcopy", own, model, seeds)
        for name, weights in (policies or {}).items():
            other = _configure(cfg, name, target)
            other.MODEL.BLOCKCOPY.POLICY.WEIGHTS = weights
            methods += _learned_methods(name, other, model, seeds)
        for kind, baseline in chosen.items():
            if baseline.follows_target:
                own = _configure(cfg, baseline.policy, target)
                if not baseline.aged:
                    own.MODEL.BLOCKCOPY.POLICY.AGE_WEIGHT = 0.0
                options = {"target": target, "motion": _motion(baseline, cfg, model)}
                for _, policy, luck in _of_runs(own, model, seeds):
                    methods.append(Method(kind, policy, **luck, **options))
    return methods


def spread_targets(target, number):
    """
    Targets of the runs of a policy that draws nothing. Single runs of a video scatter with any
    small change; the spread of runs at neighbouring targets shows by how much.

    Args:
        target (float): tau, in [0, 1].
        number (int): number of runs.

    Returns:
        list[float]: spread evenly within 2 % of ``target``, such as [0.294, 0.3, 0.306].
    """
    width = min(TARGET_SPREAD * target, 1 - target)
    steps = [0.0] if number == 1 else [2 * index / (number - 1) - 1 for index in range(number)]
    return [round(target + width * step, 6) if step else target for step in steps]


def _of_runs(cfg, model, number):
    """
    Yields:
        tuple[CfgNode, Policy, dict]: a config with a seed or target of its own, its policy, and the
        options in which its method differs from the others.
    """
    options = cfg.MODEL.BLOCKCOPY
    draws = bool(_build_policy(cfg, model).generators(model.device))
    targets = spread_targets(options.TARGET, 1 if draws else number)
    for index in range(number):
        own = _configure(cfg, options.POLICY.NAME, targets[0 if draws else index])
        found = {"draws": draws, "own_target": own.MODEL.BLOCKCOPY.TARGET}
        if draws:
            own.MODEL.BLOCKCOPY.POLICY.SEED += index
            found["seed"] = index if number > 1 else None
        yield own, _build_policy(own, model), found


def _fixed_method(kind, baseline, cfg, model, phase=0):
    """The network alone: it has no policy to prepare a frame for."""
    cfg = _configure(cfg, baseline.policy)
    rate = {"period": baseline.period, "phase": phase}
    cfg.MODEL.BLOCKCOPY.POLICY.PERIOD, cfg.MODEL.BLOCKCOPY.POLICY.PHASE = rate.values()
    policy = _build_policy(cfg, model)
    motion = _motion(baseline, cfg, model)
    stages = ("network", "heads")
    if motion is not None:
        stages = ("motion", "move_caches", *stages)
    if kind == "dense":
        # Its gain counts for all methods: like the policy's, it is what motion does not explain.
        motion = model.motion
    return Method(kind, policy, stages=stages, scale=baseline.scale, motion=motion, **rate)


def _motion(baseline, cfg, model):
    if not baseline.moved:
        return None
    if model.motion is not None:
        return model.motion
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BLOCKCOPY.MOTION.NAME = "auto"
    return build_motion(cfg)


def _learned_methods(kind, cfg, model, seeds):
    options = cfg.MODEL.BLOCKCOPY
    for own, policy, luck in _of_runs(cfg, model, seeds):
        if not policy.learns:
            raise ValueError(
                f"The policy {options.POLICY.NAME} does not learn; the protocol needs one that"
                " does, such as LearnedPolicy. The others are --baselines."
            )
        if kind == "blockcopy":
            policy.load_state_dict(model.policy.state_dict())
        learner = build_learner(own, policy)
        shown = {"target": options.TARGET, "motion": model.motion}
        yield Method(kind, policy, learner=learner, **luck, **shown)


def _configure(cfg, policy_name, target=None):
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BLOCKCOPY.POLICY.NAME = policy_name
    if target is not None:
        cfg.MODEL.BLOCKCOPY.TARGET = target
    return cfg


def _build_policy(cfg, model):
    return build_policy(cfg, num_classes=model.task.num_classes).to(model.device)
