"""Kernels of :mod:`..boxes`, whose shape shorthand is used here."""

import math

import torch
import triton
import triton.language as tl
from detectron2.modeling.box_regression import Box2BoxTransformLinear

# Sets of deltas that a program decodes.
_SETS = 128


@triton.jit
def load_boxes(boxes_ptr, mask):
    """Loads four columns of the rows at some pointers; zeros where they are masked out."""
    x0 = tl.load(boxes_ptr, mask=mask, other=0.0)
    y0 = tl.load(boxes_ptr + 1, mask=mask, other=0.0)
    x1 = tl.load(boxes_ptr + 2, mask=mask, other=0.0)
    y1 = tl.load(boxes_ptr + 3, mask=mask, other=0.0)
    return x0, y0, x1, y1


@triton.jit
def decode(deltas, boxes, transform):
    """Box2BoxTransform.apply_deltas: (x0, y0, x1, y1, whether all was finite)."""
    dx, dy, dw, dh = deltas
    x0, y0, x1, y1 = boxes
    weight_x, weight_y, weight_w, weight_h, scale_clamp = transform
    dx = tl.math.div_rn(dx.to(tl.float32), weight_x)
    dy = tl.math.div_rn(dy.to(tl.float32), weight_y)
    dw = tl.math.div_rn(dw.to(tl.float32), weight_w)
    dh = tl.math.div_rn(dh.to(tl.float32), weight_h)
    # A minimum may swallow a NaN.
    finite = (dw == dw) & (dh == dh)
    width, height = x1 - x0, y1 - y0
    centre_x = dx * width + (x0 + 0.5 * width)
    centre_y = dy * height + (y0 + 0.5 * height)
    half_width = 0.5 * (tl.exp(tl.minimum(dw, scale_clamp)) * width)
    half_height = 0.5 * (tl.exp(tl.minimum(dh, scale_clamp)) * height)
    x0, x1 = centre_x - half_width, centre_x + half_width
    y0, y1 = centre_y - half_height, centre_y + half_height
    return x0, y0, x1, y1, finite & all_finite(x0, y0, x1, y1)


@triton.jit
def decode_linear(deltas, boxes, transform):
    """Box2BoxTransformLinear.apply_deltas: (x0, y0, x1, y1, whether all was finite)."""
    x0, y0, x1, y1 = boxes
    (normalize_by_size,) = transform
    width = tl.where(normalize_by_size > 0, x1 - x0, 1.0)
    height = tl.where(normalize_by_size > 0, y1 - y0, 1.0)
    left, top, right, bottom = deltas
    # Comparisons, unlike a maximum, keep a NaN.
    left = tl.where(left < 0, 0.0, left.to(tl.float32)) * width
    top = tl.where(top < 0, 0.0, top.to(tl.float32)) * height
    right = tl.where(right < 0, 0.0, right.to(tl.float32)) * width
    bottom = tl.where(bottom < 0, 0.0, bottom.to(tl.float32)) * height
    centre_x, centre_y = 0.5 * (x0 + x1), 0.5 * (y0 + y1)
    x0, x1 = centre_x - left, centre_x + right
    y0, y1 = centre_y - top, centre_y + bottom
    return x0, y0, x1, y1, all_finite(x0, y0, x1, y1)


@triton.jit
def all_finite(x0, y0, x1, y1):
    """Returns which boxes hold neither NaN nor infinity, which fail one of the comparisons."""
    finite = (tl.abs(x0) < float("inf")) & (tl.abs(x1) < float("inf"))
    return finite & (tl.abs(y0) < float("inf")) & (tl.abs(y1) < float("inf"))


@triton.jit
def clip(x0, y0, x1, y1, limits):
    """Clips boxes between a least coordinate and a height and width."""
    least, height, width = limits
    x0 = tl.minimum(tl.maximum(x0, least), width)
    x1 = tl.minimum(tl.maximum(x1, least), width)
    y0 = tl.minimum(tl.maximum(y0, least), height)
    y1 = tl.minimum(tl.maximum(y1, least), height)
    return x0, y0, x1, y1


@triton.jit
def store_boxes(boxes_ptr, index, x0, y0, x1, y1, mask):
    """Writes the boxes of some rows."""
    tl.store(boxes_ptr + index * 4, x0, mask=mask)
    tl.store(boxes_ptr + index * 4 + 1, y0, mask=mask)
    tl.store(boxes_ptr + index * 4 + 2, x1, mask=mask)
    tl.store(boxes_ptr + index * 4 + 3, y1, mask=mask)


@triton.jit
def decode_kernel(
    deltas_ptr,
    boxes_ptr,
    out_ptr,
    finite_ptr,
    total,
    num_sets,
    deltas_row,
    transform,
    limits,
    BLOCK: tl.constexpr,
):
    """A program decodes BLOCK of the `total` sets of deltas of all boxes."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < total
    box = index // num_sets
    delta = deltas_ptr + box * deltas_row + index % num_sets * 4
    deltas, boxes = load_boxes(delta, mask), load_boxes(boxes_ptr + box * 4, mask)
    x0, y0, x1, y1, finite = decode(deltas, boxes, transform)
    x0, y0, x1, y1 = clip(x0, y0, x1, y1, limits)
    store_boxes(out_ptr, index, x0, y0, x1, y1, mask)
    tl.store(finite_ptr + index, finite.to(tl.uint8), mask=mask)


def is_linear(transform):
    """Returns whether decode_linear() is for a transform, in place of decode()."""
    return isinstance(transform, Box2BoxTransformLinear)


def transform_numbers(transform):
    """Returns the numbers of a transform that decode() or decode_linear() needs."""
    if is_linear(transform):
        return (float(transform.normalize_by_size),)
    return (*map(float, transform.weights), transform.scale_clamp)


def clip_limits(image_size):
    """Returns the numbers that clip() needs. None instead of a size: nothing is clipped."""
    if image_size is None:
        return -math.inf, math.inf, math.inf
    return 0.0, *map(float, image_size)


def decode_boxes_triton(deltas, boxes, transform, image_size):
    """Runs :func:`decode_boxes` on a GPU."""
    deltas, boxes = deltas.flatten(0, 1), boxes.contiguous()
    num_boxes, num_sets = len(deltas), deltas.shape[1] // 4
    shape = (*boxes.shape[:2], num_sets)
    out = torch.empty(*shape, 4, dtype=torch.float32, device=boxes.device)
    finite = torch.empty(shape, dtype=torch.uint8, device=boxes.device)
    total = num_boxes * num_sets
    arguments = (deltas, boxes, out, finite, total, num_sets, deltas.stride(0))
    numbers = transform_numbers(transform), clip_limits(image_size)
    decode_kernel[(triton.cdiv(total, _SETS),)](*arguments, *numbers, BLOCK=_SETS, num_warps=4)
    return out, finite.view(torch.bool)
