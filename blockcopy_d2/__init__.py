"""BlockCopy for Detectron2: block-sparse video inference with online policies.

:func:`add_blockcopy_config` adds the config keys and :func:`enable_blockcopy` turns the switch
``MODEL.BLOCKCOPY.ENABLED`` into the names Detectron2's registries build. The registered classes
live in :mod:`blockcopy_d2.modeling`. :func:`accelerate` and :class:`VideoPredictor`, for those who
have a model and a video, are imported when they are asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine.acceleration import accelerate
    from .engine.predictor import VideoPredictor

__version__ = "0.1.0"

__all__ = [
    "VideoPredictor",
    "accelerate",
    "add_blockcopy_config",
    "base_config",
    "check_blockcopy_config",
    "enable_blockcopy",
]

# Of sub-packages that import all of the others: whoever needs the config keys only does without.
_LAZY = {
    "VideoPredictor": "blockcopy_d2.engine.predictor",
    "accelerate": "blockcopy_d2.engine.acceleration",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# Imports $DETECTRON2_ENV_MODULE, which may import from here: before a module of ours is half done.
import detectron2  # noqa: E402, F401, I001

from .config import (  # noqa: E402
    add_blockcopy_config,
    base_config,
    check_blockcopy_config,
    enable_blockcopy,
)
