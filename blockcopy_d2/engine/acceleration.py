"""Accelerates any Detectron2 model in one line."""

import functools
from typing import Any

import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.data import MetadataCatalog
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from blockcopy_d2.config import KEYS, add_blockcopy_config
from blockcopy_d2.modeling import BlockCopyVideoModel, VideoOptions
from blockcopy_d2.resources import config_path, trained_weights

from .checkpoint import WeightsCheckpointer
from .config_merging import merge_overrides, nearest
from .defaults import complete_config, load_config
from .runs import build_learner, build_video_model

__all__ = [
    "accelerate",
    "build_lazy_model",
    "device_of",
    "load_video_config",
    "metadata_of",
    "video_config",
]

_OPTIONS = {
    **VideoOptions.keys(),
    "backend": "MODEL.BLOCKCOPY.BACKEND",
    "task": "MODEL.BLOCKCOPY.TASK",
    "policy": "MODEL.BLOCKCOPY.POLICY.NAME",
    "policy_weights": "MODEL.BLOCKCOPY.POLICY.WEIGHTS",
    "learn": "MODEL.BLOCKCOPY.LEARNER.ENABLED",
    "motion": "MODEL.BLOCKCOPY.MOTION.NAME",
    "max_streams": "MODEL.BLOCKCOPY.MAX_STREAMS",
    "seed": "MODEL.BLOCKCOPY.POLICY.SEED",
}

# Settings for users' own videos, unless a config says otherwise.
_DEFAULTS = (
    *("MODEL.BLOCKCOPY.MOTION.NAME", "auto"),
    *("MODEL.BLOCKCOPY.POLICY.NAME", "ExpectedGain"),
)


def accelerate(
    model_or_cfg: nn.Module | CfgNode | DictConfig, target: float | None = None, **options: Any
) -> BlockCopyVideoModel:
    """
    Turn any Detectron2 model into one that runs video block by block.

    ::
        model = blockcopy_d2.accelerate(model_zoo.get("COCO-Detection/fcos_R_50_FPN_1x.py", True))
        for index, image in enumerate(video):  # float or uint8 tensors (3, H, W)
            (output,) = model([{"image": image, "video_id": "camera 1", "frame_index": index}])

    Copied features move with the picture, unless ``motion`` is "none". The policy learns from the
    frames given to :meth:`forward`, unless ``learn`` is off. Parts that are not fully convolutional
    (ViT, Swin) run densely, and a warning says so.

    Args:
        model_or_cfg (nn.Module, CfgNode or DictConfig): a built meta-architecture, whose modules
            and weights become part of the accelerated one, frozen; a config whose MODEL.WEIGHTS
            are loaded; a LazyConfig whose ``train.init_checkpoint`` is loaded, with options in a
            node ``blockcopy`` if it has one; or the model node of a LazyConfig, with initial
            weights.
        target (float or None): tau, the fraction of blocks to execute. None: the config's
            value, by default 0.3.
        options: those of :class:`VideoOptions`, and further keys of MODEL.BLOCKCOPY: ``backend``,
            ``task``, ``policy`` and ``motion`` (their names), ``policy_weights``, ``learn``,
            ``max_streams``, ``seed``. Default: the config's values.

    Returns:
        BlockCopyVideoModel: a model with the same inputs and outputs.

    Raises:
        TypeError: an option is unknown, or the argument is not a model.
        ValueError: an option is out of its range, or weights do not fit.
    """
    if isinstance(model_or_cfg, CfgNode):
        model, model.learner = build_video_model(video_config(model_or_cfg, target, **options))
        return model
    base = model_or_cfg
    if isinstance(base, DictConfig):
        own = _lazy_options(base)
        own_target = own.pop("target", None)
        target, options = own_target if target is None else target, {**own, **options}
        base = build_lazy_model(base)
    _check_model(base)
    cfg = get_cfg()
    cfg.MODEL.PIXEL_STD = base.pixel_std.flatten().tolist()
    cfg.MODEL.DEVICE = str(base.pixel_mean.device)
    cfg = video_config(cfg, target, **options)
    model = BlockCopyVideoModel(base=base, **BlockCopyVideoModel.parts(cfg, base))
    model.to(base.pixel_mean.device)
    model.learner = build_learner(cfg, model.policy)
    return model


# Attributes of a meta-architecture, and of its backbone, that a video model reads.
_PARTS = ("backbone", "pixel_mean", "pixel_std")
_BACKBONE_PARTS = ("output_shape", "size_divisibility", "padding_constraints")


def _check_model(base):
    kind = base.__name__ if isinstance(base, type) else type(base).__name__
    missing = [name for name in _PARTS if not hasattr(base, name)]
    if hasattr(base, "_orig_mod"):
        found = "it is the result of torch.compile: give the model before"
    elif missing and isinstance(getattr(base, "module", None), nn.Module):
        found = "it wraps a model: give its attribute module"
    elif missing:
        found = f"it has no {' and no '.join(missing)}"
    elif isinstance(base, BlockCopyVideoModel):
        found = "it is accelerated already"
    else:
        missing = [name for name in _BACKBONE_PARTS if not hasattr(base.backbone, name)]
        if not missing:
            return
        found = (
            f"its backbone has no {' and no '.join(missing)}: make it a subclass of"
            " detectron2.modeling.Backbone"
        )
    raise TypeError(
        f"{kind} cannot be accelerated; expected a config or a Detectron2 model, but {found}."
    )


def video_config(cfg: CfgNode, target: float | None = None, **options: Any) -> CfgNode:
    """
    Args:
        cfg (CfgNode): any Detectron2 config, with or without the keys of BlockCopy.
        target, options: see :func:`accelerate`; None for the values of ``cfg``.

    Returns:
        CfgNode: a copy of ``cfg`` with BlockCopy enabled, checked, on a device that this machine
        has.

    Raises:
        TypeError: an unknown option.
        ValueError: names a key with a value it does not take.
    """
    unknown = options.keys() - _OPTIONS.keys()
    if unknown:
        raise TypeError(
            f"There is no option {', '.join(sorted(unknown))}; expected {', '.join(_OPTIONS)}"
            f"{nearest(min(unknown), _OPTIONS)}"
        )
    cfg = cfg.clone()
    cfg.defrost()
    says_nothing = "BLOCKCOPY" not in cfg.MODEL
    add_blockcopy_config(cfg)
    if says_nothing:
        merge_overrides(cfg, _DEFAULTS)
    cfg.MODEL.BLOCKCOPY.ENABLED = True
    values = {_OPTIONS[name]: value for name, value in options.items()}
    if target is not None:
        values["MODEL.BLOCKCOPY.TARGET"] = target
    for name, value in values.items():
        *path, key = name.split(".")
        functools.reduce(getattr, path, cfg)[key] = KEYS[name].check(name, value)
    return complete_config(cfg)


def load_video_config(name, opts=(), *, target=None, enabled=True):
    """
    Load a config for :class:`VideoPredictor`. A config of Detectron2's model zoo gets its trained
    weights.

    Args:
        name (str): name of a yaml or LazyConfig, see :func:`config_path`.
        opts (sequence[str]): overrides, "KEY VALUE" pairs, or KEY=VALUE of a LazyConfig.
        target (float or None): tau; it takes precedence over ``opts``.
        enabled (bool): value of MODEL.BLOCKCOPY.ENABLED.

    Returns:
        CfgNode or DictConfig: frozen, or a LazyConfig.

    Raises:
        FileNotFoundError, KeyError, ValueError: the config or an override is wrong.
    """
    path, weights = config_path(name), trained_weights(name)
    if not path.endswith(".py"):
        own = ["MODEL.BLOCKCOPY.ENABLED", str(enabled)]
        own += ["MODEL.WEIGHTS", weights] if weights else []
        last = [] if target is None else ["MODEL.BLOCKCOPY.TARGET", str(target)]
        cfg = load_config(path, [*own, *opts, *last], defaults=_DEFAULTS)
        cfg.freeze()
        return cfg
    own = [f"train.init_checkpoint={weights}"] if weights else []
    last = [] if target is None else [f"blockcopy.target={target}"]
    try:
        cfg = LazyConfig.apply_overrides(LazyConfig.load(path), [*own, *opts, *last])
    except SyntaxError as error:
        raise ValueError(f"The LazyConfig {name} is not valid Python: {error}") from error
    except (HydraException, OmegaConfBaseException, NotImplementedError) as error:
        message = str(error).splitlines()[0]
        raise ValueError(
            f"{message}. Overrides of the LazyConfig {name} have the form KEY=VALUE."
        ) from error
    _lazy_options(cfg)
    return cfg


def _lazy_options(cfg):
    """
    Args:
        cfg (DictConfig): a LazyConfig.

    Returns:
        dict: its node ``blockcopy``, which holds options of :func:`accelerate`.

    Raises:
        KeyError, ValueError: names an option that is unknown or has a value it does not take.
    """
    options = cfg.get("blockcopy")
    if options is None:
        return {}
    known = {"target": "MODEL.BLOCKCOPY.TARGET", **_OPTIONS}
    if not isinstance(options, DictConfig):
        raise ValueError(f"blockcopy is {options!r}; it must be options: {', '.join(known)}.")
    for name, value in options.items():
        if name not in known:
            raise KeyError(
                f"Unknown config key blockcopy.{name}; expected {', '.join(known)}"
                f"{nearest(str(name), known)}"
            )
        if not (name == "target" and value is None):
            KEYS[known[name]].check(f"blockcopy.{name}", value)
    return dict(options)


def metadata_of(cfg):
    """
    Args:
        cfg (CfgNode or DictConfig):

    Returns:
        Metadata or None: metadata of the data set that the config tests on, which name the classes.
    """
    if isinstance(cfg, CfgNode):
        names = cfg.DATASETS.TEST
    else:
        names = OmegaConf.select(cfg, "dataloader.test.dataset.names") or ()
        names = [names] if isinstance(names, str) else names
    return MetadataCatalog.get(names[0]) if names else None


def device_of(cfg):
    """
    Args:
        cfg (CfgNode or DictConfig): complete.

    Returns:
        torch.device: where the model of a config runs on this machine.
    """
    if isinstance(cfg, CfgNode):
        return torch.device(cfg.MODEL.DEVICE)
    device = torch.device(cfg.get("train", {}).get("device", "cpu"))
    return device if torch.cuda.is_available() else torch.device("cpu")


def build_lazy_model(cfg):
    """
    Args:
        cfg (DictConfig): a LazyConfig, or the model node of one.

    Returns:
        nn.Module: Detectron2's own model, in inference mode. For a whole config, it is on the
        config's device if this machine has it, with the weights that the config names.

    Raises:
        ValueError: the config has no model, or an argument that its model does not take.
    """
    if "model" not in cfg and "_target_" not in cfg:
        raise ValueError(f"The LazyConfig has no model; it has {', '.join(cfg) or 'nothing'}.")
    if "model" not in cfg:
        return instantiate(cfg).eval()
    try:
        model = instantiate(cfg.model).eval()
    except TypeError as error:
        raise ValueError(f"The model of the LazyConfig cannot be built: {error}") from error
    train = cfg.get("train", {})
    model.to(device_of(cfg))
    WeightsCheckpointer(model).load(train.get("init_checkpoint", ""))
    return model
