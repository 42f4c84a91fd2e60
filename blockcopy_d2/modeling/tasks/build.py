"""Builds the task of a model: by name, or from the structure of the model."""

import warnings

from detectron2.config import CfgNode
from torch import nn

from blockcopy_d2.config import add_blockcopy_config

from .base import TASK_REGISTRY, Task

__all__ = ["build_task", "infer_task"]

# Value of MODEL.BLOCKCOPY.TASK that chooses by the structure of the model.
_AUTO = "auto"

# Attributes of meta-architectures that make their output, and the task for each.
_PARTS = (
    (("roi_heads", "sem_seg_head"), "PanopticTask"),
    (("roi_heads",), "InstanceTask"),
    (("sem_seg_head",), "SemanticTask"),
    (("head",), "InstanceTask"),
    (("proposal_generator",), "ProposalTask"),
)


def build_task(cfg: CfgNode, base: nn.Module) -> Task:
    """
    Build the task that ``cfg.MODEL.BLOCKCOPY.TASK`` names. "auto" chooses by the parts of the
    model: "roi_heads", "sem_seg_head", both of them, "head" for a one-stage detector, or a
    "proposal_generator" alone.

    Args:
        cfg (CfgNode): with the keys of BlockCopy; nothing of the task network is read from it.
        base (nn.Module): the task network, a meta-architecture of Detectron2 or one whose parts
            have the same names.

    Returns:
        Task:

    Raises:
        KeyError: there is no task of this name.
        ValueError: the meta-architecture has none of these parts, or no number of classes.
    """
    name = cfg.MODEL.BLOCKCOPY.TASK
    return TASK_REGISTRY.get(_by_structure(base) if name == _AUTO else name)(cfg, base)


def infer_task(base, pixels_per_block=32):
    """Deprecated: see :func:`build_task`."""
    warnings.warn("infer_task is now build_task(cfg, base)", DeprecationWarning, stacklevel=2)
    cfg = CfgNode()
    add_blockcopy_config(cfg)
    cfg.MODEL.BLOCKCOPY.POLICY.PIXELS_PER_BLOCK = pixels_per_block
    return build_task(cfg, base)


def _by_structure(base):
    """str: the name of the first task whose parts all exist."""
    for parts, name in _PARTS:
        if all(getattr(base, part, None) is not None for part in parts):
            return name
    raise ValueError(
        f"{type(base).__name__} has none of the parts roi_heads, sem_seg_head, head and"
        " proposal_generator, so the kind of its outputs is unknown. Name a task in"
        f" MODEL.BLOCKCOPY.TASK: {', '.join(sorted(name for name, _ in TASK_REGISTRY))}, or one"
        " of your own (docs/extending.md)."
    )
