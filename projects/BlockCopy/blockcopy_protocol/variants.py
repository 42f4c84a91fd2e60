"""The rows of Table 2: the paper's policy with other inputs, deeper, or learned offline."""

from dataclasses import dataclass, replace

import torch

from blockcopy_d2.engine.runs import build_learner
from blockcopy_d2.policy import build_policy

from .methods import Method

__all__ = ["TABLE_2", "Variant", "build_variants", "take_warmed", "with_teachers"]


@dataclass(frozen=True)
class Variant:
    """
    A policy network, and when it learns.

    Attributes:
        inputs (tuple[str]): the maps that it sees, as in MODEL.BLOCKCOPY.POLICY.INPUTS.
        depth (int): layers of its ResNet, as in MODEL.BLOCKCOPY.POLICY.DEPTH.
        online (bool): it goes on learning while it is evaluated; otherwise it stays as it is after
            warming.
    """

    inputs: tuple[str, ...]
    depth: int = 8
    online: bool = True


_ALL = ("frame", "frame_state", "output", "grid")

# Name of a row -> its policy, in the order of the table.
TABLE_2 = {
    "frame": Variant(("frame",)),
    "previous_frame": Variant(("frame", "previous_frame")),
    "frame_state": Variant(("frame", "frame_state")),
    "output": Variant(("frame", "frame_state", "output")),
    "full": Variant(_ALL),
    "offline": Variant(_ALL, online=False),
    "resnet_20": Variant(_ALL, depth=20),
}


def with_teachers(names):
    """
    Args:
        names (sequence[str]): keys of :data:`TABLE_2`.

    Returns:
        dict[str, Variant]: these rows, and the rows whose policies offline ones take after warming.
    """
    wanted = {TABLE_2[name] for name in names}
    wanted |= {replace(variant, online=True) for variant in wanted}
    return {name: variant for name, variant in TABLE_2.items() if variant in wanted}


def build_variants(cfg, model, variants, *, targets, seeds=1):
    """
    Build policies from scratch. A seed stands for the same first weights and draws, whichever other
    rows, targets and seeds are built.

    Args:
        cfg (CfgNode): with BlockCopy enabled and LearnedPolicy.
        model (BlockCopyVideoModel): built from ``cfg``.
        variants (dict[str, Variant]): kinds of methods.
        targets (sequence[float]): values of tau.
        seeds (int): policies of every kind and target, from the config's seed on.

    Returns:
        list[Method]: for every target the variants in their order. Those that are offline have no
        learner.
    """
    return [
        _build(cfg, model, kind, variant, target=target, index=index, several=seeds > 1)
        for target in targets
        for kind, variant in variants.items()
        for index in range(seeds)
    ]


def take_warmed(methods):
    """
    Give offline methods the policies of the online ones that have the same network, target and
    seed.

    Args:
        methods (list[Method]): from :func:`build_variants`, after warming.
    """
    teachers = {}
    for method in methods:
        if method.variant.online:
            teachers.setdefault((method.variant, method.target), []).append(method)
    # Both are in the order of their seeds.
    teachers = {key: iter(found) for key, found in teachers.items()}
    for method in methods:
        if not method.variant.online:
            teacher = next(teachers[replace(method.variant, online=True), method.target])
            method.policy.load_state_dict(teacher.policy.state_dict())


def _build(cfg, model, kind, variant, *, target, index, several):
    cfg = cfg.clone()
    cfg.defrost()
    options = cfg.MODEL.BLOCKCOPY
    options.TARGET = target
    options.POLICY.INPUTS, options.POLICY.DEPTH = list(variant.inputs), variant.depth
    options.POLICY.SEED += index
    options.LEARNER.ENABLED = variant.online
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.POLICY.SEED)
        policy = build_policy(cfg, num_classes=model.task.num_classes)
    policy.to(model.device)
    return Method(
        kind,
        policy,
        target=target,
        learner=build_learner(cfg, policy),
        motion=model.motion,
        seed=index if several else None,
        draws=True,
        variant=variant,
    )
