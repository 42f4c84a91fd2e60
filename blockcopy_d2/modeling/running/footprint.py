"""
The memory of streams, and how many of them fit.

Shape shorthand: N streams of a batch.
"""

import torch

from .history import tensors_of
from .stream import VideoStream

__all__ = ["explain_shortage", "stream_bytes"]

_MB = 10**6


def stream_bytes(model, inputs):
    """
    Args:
        model (BlockCopyVideoModel):
        inputs (dict): inputs of a frame.

    Returns:
        int: approximate bytes of each stream of such frames, measured by running the first frame of
        one: features, history and, on a GPU, graphs with their memory. A batch takes at most N
        times that.
    """
    stream = VideoStream()
    before = free_bytes(model.device)
    model.step(inputs, stream)
    if model.device.type == "cuda":
        return max(before - free_bytes(model.device), 1)
    history = sum(x.numel() * x.element_size() for x in tensors_of(stream.history))
    return stream.features.nbytes + history


def explain_shortage(model, inputs, streams):
    """
    Args:
        model (BlockCopyVideoModel):
        inputs (list[dict or None]): inputs of a frame for which there was too little memory.
        streams (StreamBatch): N streams, whose memory has been released.

    Returns:
        str: the memory they would take, and how many would fit.
    """
    one = next(x for x in inputs if x is not None)
    height, width = one["image"].shape[-2:]
    number = streams.num_streams
    try:
        size, free = stream_bytes(model, one), free_bytes(model.device)
    except torch.OutOfMemoryError:
        return f"Not even one stream of {height}x{width} pixels fits into the memory of the device."
    fits = min(free // size, number - 1)
    advice = (
        f"Run {fits} of them in a batch, model.init_state({fits})" if fits else "Free some of it"
    )
    return (
        f"{number} streams of {height}x{width} pixels do not fit: each takes about"
        f" {size / _MB:.0f} MB, and {free / _MB:.0f} MB are free, enough for {fits}. {advice}, take"
        " smaller frames, or half precision (TEST.AMP.ENABLED)."
    )


def free_bytes(device):
    """
    Returns:
        int: free bytes of a GPU, including those that PyTorch keeps for itself; 0 for other
            devices.
    """
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]
