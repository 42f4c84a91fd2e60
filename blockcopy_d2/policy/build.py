"""Policies by name."""

import difflib

from detectron2.utils.registry import Registry

__all__ = ["POLICY_REGISTRY", "build_policy", "check_policy_name"]

POLICY_REGISTRY = Registry("POLICY")
POLICY_REGISTRY.__doc__ = """
Registry for policies, which pick the blocks of a frame that are worth executing.

The registered object is called with `obj(cfg, num_classes=...)` and must return a
:class:`blockcopy_d2.policy.Policy`.
"""


def build_policy(cfg, *, num_classes):
    """
    Build the policy that ``cfg.MODEL.BLOCKCOPY.POLICY.NAME`` names.

    Args:
        cfg (CfgNode):
        num_classes (int): classes of the task network's output.

    Returns:
        Policy:

    Raises:
        KeyError: there is no policy of this name.
    """
    name = cfg.MODEL.BLOCKCOPY.POLICY.NAME
    return POLICY_REGISTRY.get(name)(cfg, num_classes=num_classes)


def check_policy_name(name):
    """
    Raises:
        ValueError: there is no policy of this name; names the one closest to it, and all others.
    """
    if name in POLICY_REGISTRY:
        return
    known = sorted(known for known, _ in POLICY_REGISTRY)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ValueError(
        f"MODEL.BLOCKCOPY.POLICY.NAME is {name!r}; it must be one of {', '.join(known)}.{hint}"
    )
