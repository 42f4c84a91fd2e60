"""
The networks of the paper that Detectron2 lacks. Each is a folder with its config keys (config.py),
its table for public checkpoints (checkpoint.py) and its modules. Modules import Detectron2, so they
are imported by blockcopy_d2.modeling, which registers them.
"""

from . import csp, mgan, swiftnet

__all__ = ["NETWORKS"]

NETWORKS = {"csp": csp, "mgan": mgan, "swiftnet": swiftnet}
