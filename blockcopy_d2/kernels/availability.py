"""
Checks whether Triton kernels can run. Modules with kernels are imported only where they can, so
that the package works without Triton.
"""

import functools

import torch

__all__ = ["has_triton", "triton_runs_on"]


@functools.cache
def has_triton():
    """
    Returns:
        bool: whether Triton can be imported. PyTorch for CPUs comes without it.
    """
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def triton_runs_on(device):
    """
    Args:
        device (torch.device): device of the tensors that a kernel would work on.

    Returns:
        bool: whether the package's Triton kernels run there. They need an NVIDIA GPU of compute
        capability 8.0 or more, and Triton.
    """
    return (
        device.type == "cuda"
        and torch.version.cuda is not None
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and has_triton()
    )
