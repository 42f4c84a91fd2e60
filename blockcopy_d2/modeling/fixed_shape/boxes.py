"""
Box regression: turns deltas into boxes, and marks those that Detectron2 would drop.

Shape shorthand in this module:

    N: images of a batch
    R: boxes of an image
    K: sets of deltas per box, one per class or 1
"""

import torch

from blockcopy_d2.kernels import triton_runs_on

__all__ = ["decode_boxes"]


def decode_boxes(deltas, boxes, transform, image_size):
    """
    Apply deltas to boxes and clip the results to the image, in float32.

    Args:
        deltas (Tensor): (N, R, 4 K), the last dimension contiguous.
        boxes (Tensor): float32 (N, R, 4).
        transform (Box2BoxTransform): its weights and limit.
        image_size (tuple[int, int]): height, width.

    Returns:
        tuple[Tensor, Tensor]: float32 (N, R, K, 4), and bool (N, R, K), whether the box was finite
        before it was clipped; one that was not has no meaning.
    """
    if triton_runs_on(deltas.device):
        from .triton_ops.boxes import decode_boxes_triton

        return decode_boxes_triton(deltas, boxes, transform, image_size)
    return decode_boxes_reference(deltas, boxes, transform, image_size)


def decode_boxes_reference(deltas, boxes, transform, image_size):
    """:func:`decode_boxes` by Detectron2's own transform."""
    decoded = transform.apply_deltas(deltas.flatten(0, 1), boxes.flatten(0, 1))
    decoded = decoded.view(*boxes.shape[:2], -1, 4)
    finite = torch.isfinite(decoded).all(dim=-1)
    height, width = image_size
    return decoded.clamp(min=0).clamp(max=decoded.new_tensor([width, height] * 2)), finite
