"""Deprecated: now :mod:`blockcopy_d2.modeling.fixed_shape`."""

import warnings

from .fixed_shape import *  # noqa: F403

warnings.warn(
    f"{__name__} is now blockcopy_d2.modeling.fixed_shape", DeprecationWarning, stacklevel=2
)
