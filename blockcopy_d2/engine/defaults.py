"""What train_net.py and demo.py share: from command line arguments to a checked config."""

import argparse
import difflib
import logging
import re

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser as detectron2_argument_parser
from detectron2.engine import default_setup
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.projects.point_rend import add_pointrend_config
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from blockcopy_d2.config import add_blockcopy_config, check_blockcopy_config, enable_blockcopy
from blockcopy_d2.policy import POLICY_REGISTRY
from blockcopy_d2.resources import config_path, trained_weights

__all__ = ["complete_config", "default_argument_parser", "load_config", "setup"]


def default_argument_parser(epilog=None):
    """
    Detectron2's own parser. Config overrides are the rest of the command line; ``--opts`` may stand
    before them, as it must with Detectron2's demo.

    Args:
        epilog (str or None): of the help, instead of Detectron2's.

    Returns:
        ArgumentParser:
    """
    parser = detectron2_argument_parser(epilog)
    parser.add_argument(
        "--opts",
        action="store_true",
        dest="opts_follow",
        help="may stand before the config options at the end of the command",
    )
    return parser


def setup(args):
    """
    Build the config of a job and set up logging, the output folder and the seed.

    Args:
        args (Namespace): of Detectron2's ``default_argument_parser``. ``config_file`` is a file
            or a name in this package's or Detectron2's model zoo.

    Returns:
        CfgNode: frozen; with ``MODEL.BLOCKCOPY.ENABLED``, ready for ``build_model``. With
        ``--eval-only`` a config by its name in the model zoo has its trained weights.
    """
    path = config_path(args.config_file) if args.config_file else ""
    weights = trained_weights(args.config_file) if path and args.eval_only else None
    cfg = load_config(path, [*(["MODEL.WEIGHTS", weights] if weights else []), *args.opts])
    cfg.freeze()
    # Detectron2 sets up its own loggers only.
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="blockcopy_d2")
    default_setup(cfg, argparse.Namespace(**{**vars(args), "config_file": path}))
    return cfg


def load_config(path="", opts=()):
    """
    Args:
        path (str): a config file, or empty for Detectron2's defaults.
        opts (sequence[str]): "KEY VALUE" pairs that override it.

    Returns:
        CfgNode: unfrozen, checked, with BlockCopy enabled where the switch is on, on a device
        this machine has.

    Raises:
        KeyError: names an unknown key and the known keys closest to it.
        ValueError: names a key with a value out of its range, or a file that is no yaml config.
    """
    if str(path).endswith(".py"):
        raise ValueError(
            f"{path} is a LazyConfig, which is for demo.py, blockcopy_d2.report and accelerate();"
            " here a yaml config is expected."
        )
    if len(opts) % 2:
        raise ValueError(
            "Config overrides are pairs of KEY and VALUE; these are not:"
            f" {' '.join(map(str, opts))}"
        )
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_pointrend_config(cfg)
    add_blockcopy_config(cfg)
    try:
        if path:
            cfg.merge_from_file(path)
        cfg.merge_from_list(list(opts))
    except (KeyError, AssertionError) as error:
        unknown = re.search(r"Non-existent (?:config )?key: ([\w.]+)", str(error))
        if unknown is None:
            raise
        raise KeyError(_unknown_key_message(unknown.group(1), cfg)) from error
    except (AttributeError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not a yaml config of Detectron2: {error}") from error
    return complete_config(cfg)


def complete_config(cfg):
    """
    Args:
        cfg (CfgNode): unfrozen, with the keys of BlockCopy, changed in place.

    Returns:
        CfgNode: ``cfg``, checked, with BlockCopy enabled where the switch is on, on a device this
        machine has.

    Raises:
        ValueError: names a key with a value out of its range.
    """
    enable_blockcopy(cfg)
    check_blockcopy_config(cfg)
    _check_policy_name(cfg.MODEL.BLOCKCOPY.POLICY.NAME)
    _follow_the_machine(cfg)
    return cfg


def _unknown_key_message(key, cfg):
    known = list(_full_keys(cfg))
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    if not near:
        leaf = key.rsplit(".", 1)[-1]
        near = [name for name in known if name.rsplit(".", 1)[-1] == leaf][:3]
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    return f"Unknown config key {key}{hint}"


def _full_keys(node, prefix=""):
    for key, value in node.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from _full_keys(value, f"{prefix}{key}.")


def _check_policy_name(name):
    if name not in POLICY_REGISTRY:
        known = ", ".join(sorted(known for known, _ in POLICY_REGISTRY))
        raise ValueError(f"MODEL.BLOCKCOPY.POLICY.NAME is {name!r}; it must be one of {known}.")


def _follow_the_machine(cfg):
    logger = logging.getLogger(__name__)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning(
            "MODEL.DEVICE is '%s', but there is no CUDA device: running on the CPU.",
            cfg.MODEL.DEVICE,
        )
        cfg.MODEL.DEVICE = "cpu"
    if cfg.SOLVER.AMP.ENABLED and not cfg.MODEL.DEVICE.startswith("cuda"):
        logger.info("Detectron2 trains with AMP on CUDA only: SOLVER.AMP.ENABLED is off.")
        cfg.SOLVER.AMP.ENABLED = False
