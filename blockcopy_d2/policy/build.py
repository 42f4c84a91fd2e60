"""Policies by name."""

from detectron2.utils.registry import Registry

from blockcopy_d2.config_key import check_registered

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
        ValueError: there is no policy of this name. The message has the closest one, and all
            others.
    """
    check_registered("MODEL.BLOCKCOPY.POLICY.NAME", name, POLICY_REGISTRY)
