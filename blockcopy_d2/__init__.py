"""BlockCopy for Detectron2: block-sparse video inference with online policies.

:func:`add_blockcopy_config` adds the config keys and :func:`enable_blockcopy` turns the switch
``MODEL.BLOCKCOPY.ENABLED`` into the names Detectron2's registries build. The registered classes
live in :mod:`blockcopy_d2.modeling`, which imports torch and Detectron2 when it is asked for.
"""

from .config import add_blockcopy_config, base_config, check_blockcopy_config, enable_blockcopy

__version__ = "0.1.0"

__all__ = [
    "add_blockcopy_config",
    "base_config",
    "check_blockcopy_config",
    "enable_blockcopy",
]
