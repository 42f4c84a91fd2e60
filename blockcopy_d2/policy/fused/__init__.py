"""The policy network as about twenty Triton launches, for calls without gradients."""

from .draw import draw
from .network import FusedNetwork

__all__ = ["FusedNetwork", "draw"]
