"""Turns command line arguments into a checked config, for train_net.py and demo.py."""

import argparse
import contextlib
import functools
import logging
import os

import torch
from detectron2.config import get_cfg
from detectron2.engine import default_argument_parser as detectron2_argument_parser
from detectron2.engine import default_setup
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.utils import comm

from blockcopy_d2.atomic import atomic_write
from blockcopy_d2.config import add_blockcopy_config, check_blockcopy_config, enable_blockcopy
from blockcopy_d2.config_key import check_registered
from blockcopy_d2.data.addresses import is_address
from blockcopy_d2.evaluation.summary import remove_summary
from blockcopy_d2.modeling import TASK_REGISTRY
from blockcopy_d2.motion import MOTION_REGISTRY
from blockcopy_d2.policy import POLICY_REGISTRY
from blockcopy_d2.resources import config_path, trained_weights

from .arguments import without_secrets
from .config_merging import merge_file, merge_overrides
from .logs import set_up_logs
from .output_folder import claim_folder, make_folder

try:
    from detectron2.projects.point_rend import add_pointrend_config
except ImportError:
    # It needs OpenCV, which other models do without. Keys of a PointRend are then unknown.
    add_pointrend_config = None

__all__ = ["complete_config", "default_argument_parser", "load_config", "setup"]

# Keys whose values are names in a registry, and further values with a meaning.
_NAMES = {
    "POLICY.NAME": (POLICY_REGISTRY, ()),
    "TASK": (TASK_REGISTRY, ("auto",)),
    "MOTION.NAME": (MOTION_REGISTRY, ("auto", "none")),
}


def default_argument_parser(epilog=None):
    """
    Detectron2's own parser. Config overrides are the rest of the command line; ``--opts`` may stand
    before them, as it must with Detectron2's demo. Its errors show no secrets of addresses.

    Args:
        epilog (str or None): end of the help, instead of Detectron2's.

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
    return without_secrets(parser)


def setup(args):
    """
    Build the config of a job and set up logging, the output folder and the seed. The summary of an
    earlier job is removed from the folder.

    Args:
        args (Namespace): arguments of Detectron2's ``default_argument_parser``. ``config_file`` is
            a file or a name in this package's or Detectron2's model zoo.

    Returns:
        CfgNode: frozen; with ``MODEL.BLOCKCOPY.ENABLED``, ready for ``build_model``. With
        ``--eval-only`` a config named as in the model zoo gets its trained weights.

    Raises:
        KeyError, ValueError: see :func:`load_config`; or, with BlockCopy enabled, another program
            writes to the output folder.
        OSError: the output folder cannot be made or written to.
    """
    path = config_path(args.config_file) if args.config_file else ""
    weights = trained_weights(args.config_file) if path and args.eval_only else None
    cfg = load_config(path, [*(["MODEL.WEIGHTS", weights] if weights else []), *args.opts])
    cfg.freeze()
    if comm.is_main_process() and not is_address(cfg.OUTPUT_DIR):
        make_folder(cfg.OUTPUT_DIR)
        if cfg.MODEL.BLOCKCOPY.ENABLED:
            claim_folder(cfg.OUTPUT_DIR)
    # Before Detectron2 sets up its loggers, and logs the config and the command line.
    set_up_logs(cfg.OUTPUT_DIR, rank=comm.get_rank(), detectron2=True)
    # For every job, since its config goes to the folder, which must not keep another job's summary.
    remove_summary(cfg.OUTPUT_DIR)
    with _restored_on_failure(os.path.join(cfg.OUTPUT_DIR, "config.yaml")):
        default_setup(cfg, argparse.Namespace(**{**vars(args), "config_file": path}))
    return cfg


@contextlib.contextmanager
def _restored_on_failure(path):
    """
    Restores a file that Detectron2 writes in place, since it may be the config of the job itself.
    """
    before = None
    if os.path.isfile(path):
        with open(path, "rb") as f:
            before = f.read()
    try:
        yield
    except BaseException:
        if before is not None:
            with atomic_write(path) as temporary, open(temporary, "wb") as f:
                f.write(before)
        raise


def load_config(path="", opts=(), *, defaults=()):
    """
    Args:
        path (str): a yaml config, or empty for Detectron2's defaults. No code in it is executed.
        opts (sequence[str]): "KEY VALUE" pairs that override it.
        defaults (sequence[str]): pairs that the config overrides.

    Returns:
        CfgNode: unfrozen, checked, with BlockCopy enabled if the switch is on, on a device this
        machine has.

    Raises:
        KeyError: names an unknown key and the known keys closest to it.
        ValueError: names a key with a value out of its range, or a file that is not a yaml config.
    """
    if str(path).endswith(".py"):
        raise ValueError(
            f"{path} is a LazyConfig, which is for demo.py, blockcopy_d2.report and accelerate();"
            " here a yaml config is expected."
        )
    cfg = get_cfg()
    add_deeplab_config(cfg)
    if add_pointrend_config is not None:
        add_pointrend_config(cfg)
    add_blockcopy_config(cfg)
    merge_overrides(cfg, defaults)
    if path:
        merge_file(cfg, path)
    merge_overrides(cfg, opts)
    return complete_config(cfg)


def complete_config(cfg):
    """
    Args:
        cfg (CfgNode): unfrozen, with the keys of BlockCopy, changed in place.

    Returns:
        CfgNode: ``cfg``, checked, with BlockCopy enabled if the switch is on, on a device this
        machine has.

    Raises:
        ValueError: names a key with a value out of its range.
    """
    check_blockcopy_config(cfg)
    for key, (registry, also) in _NAMES.items():
        name = functools.reduce(getattr, key.split("."), cfg.MODEL.BLOCKCOPY)
        check_registered(f"MODEL.BLOCKCOPY.{key}", name, registry, also)
    enable_blockcopy(cfg)
    _follow_the_machine(cfg)
    return cfg


def _follow_the_machine(cfg):
    logger = logging.getLogger(__name__)
    _check_device(cfg.MODEL.DEVICE)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning(
            "MODEL.DEVICE is '%s', but there is no CUDA device: running on the CPU.",
            cfg.MODEL.DEVICE,
        )
        cfg.MODEL.DEVICE = "cpu"
    if cfg.SOLVER.AMP.ENABLED and not cfg.MODEL.DEVICE.startswith("cuda"):
        logger.info("Detectron2 trains with AMP on CUDA only: SOLVER.AMP.ENABLED is off.")
        cfg.SOLVER.AMP.ENABLED = False


def _check_device(name):
    try:
        index = torch.device(name).index
    except RuntimeError:
        raise ValueError(
            f"MODEL.DEVICE is {name!r}; expected a device of PyTorch, such as cuda, cuda:1 or cpu."
        ) from None
    number = torch.cuda.device_count()
    if name.startswith("cuda:") and index >= number > 0:
        raise ValueError(
            f"MODEL.DEVICE is {name!r}, but the CUDA devices of this machine end at"
            f" cuda:{number - 1}."
        )
