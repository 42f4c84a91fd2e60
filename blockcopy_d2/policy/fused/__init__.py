"""The policy network as some twenty Triton launches, where no gradient is wanted."""

from .draw import draw
from .network import FusedNetwork

__all__ = ["FusedNetwork", "draw"]
