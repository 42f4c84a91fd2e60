"""The policy network as a dozen Triton launches, where no gradient is wanted."""

from .network import FusedNetwork

__all__ = ["FusedNetwork"]
