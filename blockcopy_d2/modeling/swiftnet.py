"""Deprecated: now :mod:`blockcopy_d2.networks.swiftnet`."""

import warnings

from blockcopy_d2.networks.swiftnet.backbone import *  # noqa: F403
from blockcopy_d2.networks.swiftnet.head import *  # noqa: F403

warnings.warn(f"{__name__} is now blockcopy_d2.networks.swiftnet", DeprecationWarning, stacklevel=2)
