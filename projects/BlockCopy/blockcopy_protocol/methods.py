"""The methods that the protocol compares: ways of picking blocks for one and the same network."""

from blockcopy_d2.engine import PolicyCheckpointer
from blockcopy_d2.engine.loop import ModelRun
from blockcopy_d2.evaluation.efficiency import MacCounter
from blockcopy_d2.modeling import StreamPool
from blockcopy_d2.policy import OnlineLearner, build_policy

__all__ = ["BASELINES", "Method", "build_methods"]

# Policies to compare with, by their name on the command line.
BASELINES = {"random": "RandomBlocks", "frame_difference": "FrameDifference"}


class Method:
    """
    A policy with all that must not be shared: its streams and its learner. The task network is
    shared by all methods.
    """

    def __init__(self, kind, policy, *, target=None, learner=None, stages=None):
        """
        Args:
            kind (str): "dense", "blockcopy" or one of ``BASELINES``.
            policy (Policy): picks the blocks.
            target (float or None): tau.
            learner (OnlineLearner or None): of ``policy``.
            stages (tuple[str] or None): the stages of a frame whose time counts; None: all.
        """
        self.kind = kind
        self.policy = policy
        self.target = target
        self.learner = learner
        self._stages = stages
        self._streams = StreamPool(max_streams=1)

    @property
    def name(self):
        """str: unique among methods, such as "blockcopy 0.3"."""
        return self.kind if self.target is None else f"{self.kind} {self.target:g}"

    def run(self, model, inputs):
        """
        Run the next frame, and learn from it if there is a learner. Waits for the device, so that
        no method pays for the one before.

        Args:
            model (BlockCopyVideoModel): its policy is replaced by this method's.
            inputs (dict): of :class:`blockcopy_d2.data.ClipMapper`.

        Returns:
            ModelRun:
        """
        model.policy = self.policy
        stream = self._streams.get(inputs["video_id"], inputs["frame_index"])
        learning = self.learner is not None and self.learner.wants_graph()
        with MacCounter(model) as counter:
            result = model.step(inputs, stream, learning=learning)
        if self.learner is not None and result.decision.logits is not None:
            with result.timer.stage("information gain"):
                gain = model.information_gain(result)
            with result.timer.stage("policy update"):
                self.learner.observe(result.decision, gain)
        seconds = result.seconds
        if self._stages:
            seconds = {stage: seconds[stage] for stage in self._stages}
        return ModelRun(
            output=result.output,
            macs=result.macs + counter.macs,
            seconds=lambda: seconds,
            result=result,
        )


def build_methods(cfg, model, *, targets, baselines=()):
    """
    Args:
        cfg (CfgNode): with BlockCopy enabled; names a policy that learns.
        model (BlockCopyVideoModel): built from ``cfg``.
        targets (sequence[float]): values of tau.
        baselines (sequence[str]): keys of ``BASELINES``.

    Returns:
        list[Method]: dense, then per target a policy that starts as a copy of the model's, and
        the baselines.

    Raises:
        ValueError: the policy that ``cfg`` names does not learn.
    """
    # Dense stands for the network alone: it has no policy to prepare a frame for.
    dense = _build_policy(_configure(cfg, "AllBlocks"), model)
    methods = [Method("dense", dense, stages=("network", "heads"))]
    for target in targets:
        learned_cfg = _configure(cfg, cfg.MODEL.BLOCKCOPY.POLICY.NAME, target)
        methods.append(_learned_method(learned_cfg, model))
        for kind in baselines:
            policy = _build_policy(_configure(cfg, BASELINES[kind], target), model)
            methods.append(Method(kind, policy, target=target))
    return methods


def _learned_method(cfg, model):
    options = cfg.MODEL.BLOCKCOPY
    policy = _build_policy(cfg, model)
    if not policy.learns:
        raise ValueError(
            f"MODEL.BLOCKCOPY.POLICY.NAME is {options.POLICY.NAME}, which does not learn; the"
            " protocol needs a policy that does, such as LearnedPolicy. The others are --baselines."
        )
    policy.load_state_dict(model.policy.state_dict())
    learner = OnlineLearner(cfg, policy) if options.LEARNER.ENABLED else None
    if options.POLICY.WEIGHTS:
        PolicyCheckpointer(policy, learner=learner).load(options.POLICY.WEIGHTS)
    return Method("blockcopy", policy, target=options.TARGET, learner=learner)


def _configure(cfg, policy_name, target=None):
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BLOCKCOPY.POLICY.NAME = policy_name
    if target is not None:
        cfg.MODEL.BLOCKCOPY.TARGET = target
    return cfg


def _build_policy(cfg, model):
    return build_policy(cfg, num_classes=model.task.num_classes).to(model.device)
