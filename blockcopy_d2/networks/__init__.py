"""
The networks of the paper that Detectron2 does not have, each a folder with all that is its own: its
config keys (config.py), the public checkpoints that become it (checkpoint.py), its modules.
Modules import Detectron2, so they are imported by blockcopy_d2.modeling, which registers them.
"""

from . import csp, mgan, swiftnet

__all__ = ["NETWORKS"]

NETWORKS = {"csp": csp, "mgan": mgan, "swiftnet": swiftnet}
