"""Deprecated: now :mod:`blockcopy_d2.networks.mgan`."""

import warnings

from blockcopy_d2.networks.mgan.anchors import *  # noqa: F403
from blockcopy_d2.networks.mgan.roi_heads import *  # noqa: F403
from blockcopy_d2.networks.mgan.vgg import *  # noqa: F403

warnings.warn(f"{__name__} is now blockcopy_d2.networks.mgan", DeprecationWarning, stacklevel=2)
