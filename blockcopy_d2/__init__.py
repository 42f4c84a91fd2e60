"""BlockCopy for Detectron2: block-sparse video inference with online policies.

:func:`add_blockcopy_config` adds the config keys and :func:`enable_blockcopy` turns the switch
``MODEL.BLOCKCOPY.ENABLED`` into names that Detectron2's registries build. The registered classes
live in :mod:`blockcopy_d2.modeling`. :func:`accelerate` and :class:`VideoPredictor` are for those
who have a model and a video. Every name is imported when it is first used.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import (
        add_blockcopy_config,
        base_config,
        check_blockcopy_config,
        enable_blockcopy,
    )
    from .engine.acceleration import accelerate
    from .engine.predictor import VideoPredictor

# The version is here only: setup.py reads this line.
__version__ = "0.2.0"

__all__ = [
    "VideoPredictor",
    "accelerate",
    "add_blockcopy_config",
    "base_config",
    "check_blockcopy_config",
    "enable_blockcopy",
]

# Importing PyTorch and Detectron2 takes seconds.
_MODULES = {
    "VideoPredictor": "blockcopy_d2.engine.predictor",
    "accelerate": "blockcopy_d2.engine.acceleration",
    "add_blockcopy_config": "blockcopy_d2.config",
    "base_config": "blockcopy_d2.config",
    "check_blockcopy_config": "blockcopy_d2.config",
    "enable_blockcopy": "blockcopy_d2.config",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# Set up before any other import: Detectron2 imports that file, which may import from here.
if os.environ.get("DETECTRON2_ENV_MODULE"):
    import detectron2  # noqa: F401

# `python -m blockcopy_d2.report` imports this package and its sub-package, with Detectron2, before
# the first line of the command. Until then the name of the program is "-m".
if sys.argv[:1] == ["-m"]:
    from . import quiet_imports  # noqa: F401
