"""
The dense model to compare with: batch norm folded, channels last, any dtype, all of it in one CUDA
graph, and the network run in the fastest way that PyTorch has.

Shape shorthand: N frames of a batch, H x W pixels.
"""

import copy
import time

import torch
import torch.utils._pytree as pytree
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.structures import ImageList
from torch import nn

from blockcopy_d2.modeling.fixed_shape import FrameSizes, StaticDetections, find_static_heads

from .measure import captured, interleaved

__all__ = ["BestDense", "fold_batch_norm"]

# Resolution of the masks for the policy, which are part of the second stage.
_BLOCK_SIZE, _PIXELS_PER_BLOCK = 128, 32


class BestDense:
    """
    A dense model at its best: the rival that BlockCopy has to beat. The network runs by cuDNN's
    kernels or by torch.compile, whichever is faster; the second stage is the one of BlockCopy.
    Preprocessing, network and second stage are one CUDA graph.

    Attributes:
        how (str): "cuDNN" or "torch.compile MODE", the fastest.
        network_ms (dict[str, float]): milliseconds of a batch, for every way that was tried.
        network, heads (callable): replay the network alone and the second stage alone.
        detect (callable): replays the second stage until the number of detections is known.

    Examples:
    ::
        dense = BestDense(model, images, torch.float16)
        instances = dense(images)
        print(dense.measure(images))  # {"network_ms": ..., "frame_ms": ..., "how": ...}
    """

    @torch.no_grad()
    def __init__(self, model, images, dtype, *, modes=("default",), rounds=10):
        """
        Args:
            model (nn.Module): a meta-architecture of Detectron2 with StaticHeads, in eval mode.
            images (list[Tensor]): N tensors, uint8 (3, H, W), of the size of all later batches.
            dtype (torch.dtype): type of the network.
            modes (sequence[str]): modes of torch.compile; each compiles for 20 seconds to minutes.
            rounds (int): measurements of every way.

        Raises:
            ValueError: there are no StaticHeads for the model.
            AssertionError: a compiled network does not compute the same as the eager one.
        """
        kind = find_static_heads(model)
        if kind is None:
            raise ValueError(
                f"{type(model).__name__} does not run as one CUDA graph; expected a model that"
                " find_static_heads() knows."
            )
        self._model, self._dtype = model, dtype
        self._images = torch.stack(list(images))
        folded = fold_batch_norm(model).to(dtype, memory_format=torch.channels_last)
        example = self._preprocess()
        run, self.network, self.how = self._fastest(kind(folded).network, example, modes, rounds)
        heads, sizes = kind(model), self._sizes(example)
        self._frame = captured(lambda: heads(*run(self._preprocess()), sizes))
        inputs = run(example)
        self.heads = captured(lambda: heads(*inputs, sizes))
        self.detect = captured(lambda: heads.begin(*inputs, sizes))

    @torch.no_grad()
    def __call__(self, images):
        """
        Args:
            images (list[Tensor]): N tensors, uint8 (3, H, W).

        Returns:
            list[Instances] or Tensor, or a tuple of these: the model's outputs for the frames.
        """
        for place, image in zip(self._images, images, strict=True):
            place.copy_(image)
        self._frame()
        return _in_memory_of_its_own(self._frame.result)

    def measure(self, images, *, rounds=30):
        """
        Args:
            images (list[Tensor]): images of a batch.
            rounds (int): measurements.

        Returns:
            dict: "network_ms" and "frame_ms", milliseconds per frame, and "how".
        """
        frame = self._per_frame(lambda: self(images), rounds)
        return {"frame_ms": frame, **self.measure_network(rounds)}

    def measure_network(self, rounds=30):
        """dict: the result of :meth:`measure` without "frame_ms"."""
        return {"network_ms": self._per_frame(self.network, rounds), "how": self.how}

    @torch.no_grad()
    def _per_frame(self, function, rounds):
        device = self._images.device
        times = interleaved({"": function}, rounds=rounds, device=device)
        return round(times[""]["median"] / len(self._images), 4)

    def _preprocess(self):
        """Tensor: (N, 3, H, W), normalized and padded as the model does."""
        model, backbone = self._model, self._model.backbone
        images = ImageList.from_tensors(
            list((self._images - model.pixel_mean) / model.pixel_std),
            backbone.size_divisibility,
            padding_constraints=backbone.padding_constraints,
        )
        return images.tensor.to(self._dtype, memory_format=torch.channels_last)

    def _sizes(self, x):
        size, canvas = tuple(self._images.shape[-2:]), tuple(x.shape[-2:])
        grid_shape = tuple(-(-extent // _BLOCK_SIZE) for extent in canvas)
        return FrameSizes(size, canvas, size, grid_shape, _PIXELS_PER_BLOCK)

    def _fastest(self, network, example, modes, rounds):
        """Returns the network run in the fastest way, its replay, and the name of the way."""
        self.network_ms, best = {}, None
        expected = pytree.tree_leaves(network(example))
        for mode in (None, *modes):
            how, run, start = "cuDNN", network, time.perf_counter()
            if mode is not None:
                how, run = f"torch.compile {mode}", _compiled(network, mode)
                _check_equal(how, run(example), expected)
            replay = captured(lambda run=run: run(example))
            ready = time.perf_counter() - start
            times = interleaved({how: replay}, rounds=rounds, device=example.device)
            self.network_ms[how] = ms = times[how]["median"]
            print(
                f"dense, {len(example)} x {how}: {ms:.3f} ms (ready in {ready:.0f} s)", flush=True
            )
            if best is None or ms < self.network_ms[best[2]]:
                best = run, replay, how
            # The next one needs the memory of the slower graph.
            del replay
        return best


def _in_memory_of_its_own(result):
    if isinstance(result, tuple):
        return tuple(map(_in_memory_of_its_own, result))
    return result.to_instances() if isinstance(result, StaticDetections) else result.clone()


def _compiled(network, mode):
    # Code that was compiled too often would silently run eagerly.
    torch._dynamo.reset()
    return torch.compile(network, mode=mode, dynamic=False, fullgraph=True)


def _check_equal(how, outputs, expected):
    for found, wanted in zip(pytree.tree_leaves(outputs), expected, strict=True):
        error = (found.float() - wanted.float()).norm() / wanted.float().norm()
        assert error < 0.02, f"{how}: relative error {error:.4f}"


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
