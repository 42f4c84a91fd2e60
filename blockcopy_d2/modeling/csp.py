"""Deprecated: now :mod:`blockcopy_d2.networks.csp`."""

import warnings

from blockcopy_d2.networks.csp.backbone import *  # noqa: F403
from blockcopy_d2.networks.csp.head import *  # noqa: F403
from blockcopy_d2.networks.csp.meta_arch import *  # noqa: F403
from blockcopy_d2.networks.csp.targets import *  # noqa: F403

warnings.warn(f"{__name__} is now blockcopy_d2.networks.csp", DeprecationWarning, stacklevel=2)
