"""The precision that the task network runs in."""

import contextlib
import logging

import torch
from detectron2.utils.logger import log_first_n

__all__ = ["cpu_has_bf16", "inference_autocast"]


def inference_autocast(device, enabled):
    """
    Args:
        device (torch.device): where the task network runs.
        enabled (bool): TEST.AMP.ENABLED.

    Returns:
        context manager: PyTorch's autocast in the lower precision of the device, fp16 on CUDA and
        bf16 on a CPU that multiplies it. On another CPU, where bf16 is slower than fp32, nothing
        changes, and a warning says so once. Where not enabled, the caller's autocast stays.
    """
    if not enabled:
        return contextlib.nullcontext()
    if device.type == "cpu" and not cpu_has_bf16():
        log_first_n(
            logging.WARNING,
            "TEST.AMP.ENABLED is set, but this CPU has neither AMX nor AVX512-BF16: running in"
            " fp32.",
            name=__name__,
            key="message",
        )
        return contextlib.nullcontext()
    return torch.autocast(device.type)


def cpu_has_bf16():
    """
    Returns:
        bool: whether the CPU has instructions that multiply bf16, AVX512-BF16 or AMX.
    """
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
