"""Memory of more than 2^31 elements, of which a test uses a few."""

import math

import torch


def far_memory(folder, shape, dtype, device="cpu"):
    """
    Args:
        folder (Path): folder of a test.
        shape (tuple[int]): shape of the tensor.
        dtype (torch.dtype): type of its numbers.
        device (str): where it lies.

    Returns:
        Tensor: zeros; on a CPU in a file of which only those parts take space that are written.
    """
    if device != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    number, name = math.prod(shape), str(folder / "memory")
    return torch.from_file(name, shared=True, size=number, dtype=dtype).view(shape)
