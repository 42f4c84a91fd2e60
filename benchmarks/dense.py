"""
The dense network to compare with: batch norm folded, channels last, any dtype, captured in a CUDA
graph, and of all ways that PyTorch has to run it the fastest.
"""

import copy

import torch
import torch.utils._pytree as pytree
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn

__all__ = ["COMPILE_MODES", "dense_rivals", "fastest", "fold_batch_norm"]

# Of torch.compile. Those that capture graphs of their own do not fit into the graph of a frame.
COMPILE_MODES = ("default", "max-autotune-no-cudagraphs")


def fold_batch_norm(module):
    """
    Args:
        module (nn.Module): in eval mode, of Detectron2's convolutions.

    Returns:
        nn.Module: a copy that computes the same with the batch norm inside the convolutions.
    """
    module = copy.deepcopy(module)
    for conv in [m for m in module.modules() if isinstance(m, Conv2d)]:
        norm = conv.norm
        if not isinstance(norm, (FrozenBatchNorm2d, nn.BatchNorm2d)):
            continue
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * scale
        if conv.bias is not None:
            shift = shift + conv.bias * scale
        conv.weight = nn.Parameter(conv.weight * scale[:, None, None, None], requires_grad=False)
        conv.bias = nn.Parameter(shift, requires_grad=False)
        conv.norm = None
    return module


def dense_rivals(network, example, modes=COMPILE_MODES):
    """
    Args:
        network (callable): of one tensor; folded, in the precision and memory format to run in.
        example (Tensor): an input, of the only size that will be run.
        modes (sequence[str]): of torch.compile to try.

    Returns:
        dict[str, callable]: the network by how it runs: "eager", the libraries' kernels one by one,
        and "compile MODE" for every mode.

    Raises:
        AssertionError: a compiled network computes something else than the eager one.
    """
    rivals = {"eager": network}
    expected = pytree.tree_leaves(network(example))
    for mode in modes:
        torch._dynamo.reset()
        compiled = torch.compile(network, mode=mode, dynamic=False)
        for found, wanted in zip(pytree.tree_leaves(compiled(example)), expected, strict=True):
            error = (found.float() - wanted.float()).norm() / wanted.float().norm()
            assert error < 0.02, f"torch.compile, mode {mode}: relative error {error:.4f}"
        rivals[f"compile {mode}"] = compiled
    return rivals


def fastest(times):
    """
    Args:
        times (dict[str, dict]): quartiles by rival, see :func:`benchmarks.measure.interleaved`.

    Returns:
        str: the rival of the smallest median.
    """
    return min(times, key=lambda name: times[name]["median"])
