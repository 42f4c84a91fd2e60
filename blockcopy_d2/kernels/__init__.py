"""What all Triton kernels share. Importing it takes no Triton."""

from .availability import has_triton, triton_runs_on

__all__ = ["has_triton", "triton_runs_on"]
