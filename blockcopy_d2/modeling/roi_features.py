"""Feature maps in the memory layout that RoI pooling reads."""

from contextlib import contextmanager

import torch

__all__ = ["PlanarFeatures", "planar_features"]


class PlanarFeatures:
    """
    Copies of a stream's feature maps with one plane per channel. The engine keeps the channels of
    a pixel together; RoI pooling on the CPU wants planes, of fp32, and would copy every map, for
    boxes and for masks. Here only executed blocks are copied, once: at 512x1024 and 256 channels
    this saves about 40 ms of a frame.
    """

    def __init__(self):
        self._planes = {}

    def reset(self):
        self._planes.clear()

    def update(self, features, strides, grid):
        """
        Args:
            features (dict[str, Tensor]): (N, C, H / s, W / s) each, of the frame just executed.
            strides (dict[str, int]): s, of each.
            grid (BlockGrid): the blocks executed.

        Returns:
            dict[str, Tensor]: the same values, contiguous; bf16 becomes fp32.
        """
        return {name: self._update(name, x, strides[name], grid) for name, x in features.items()}

    def _update(self, name, x, stride, grid):
        dtype = torch.float32 if x.dtype == torch.bfloat16 else x.dtype
        if x.is_contiguous() and x.dtype == dtype:
            return x
        planes = self._planes.get(name)
        if planes is None or grid.is_full:
            planes = self._planes[name] = x.to(dtype, memory_format=torch.contiguous_format)
        else:
            for n, rows, columns in grid.at_stride(stride).slices():
                planes[n, :, rows, columns] = x[n, :, rows, columns]
        return planes


@contextmanager
def planar_features(model, planar, grid):
    """
    While open, the ``roi_heads`` of a meta-architecture, if it has any, get its features from
    ``planar``. On CUDA, where pooling copies faster than the host can name the blocks, nothing
    changes.

    Args:
        model (nn.Module): a Detectron2 meta-architecture.
        planar (PlanarFeatures): of the stream.
        grid (BlockGrid): the blocks that this frame executes.
    """
    roi_heads = getattr(model, "roi_heads", None)
    if roi_heads is None or grid.active.is_cuda:
        yield
        return
    strides = {name: shape.stride for name, shape in model.backbone.output_shape().items()}

    def replace(module, args):
        images, features, *others = args
        return (images, planar.update(features, strides, grid), *others)

    handle = roi_heads.register_forward_pre_hook(replace)
    try:
        yield
    finally:
        handle.remove()
