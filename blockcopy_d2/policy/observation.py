"""
Observations of the policy: frames and outputs at policy resolution.

Shape shorthand in this module:

    N: streams
    B: side of a block in pixels of the network's input, a power of two
    H, W: height and width of the network's input, padding included (the canvas)
    GH, GW: rows and columns of the block grid, ceil(H / B) x ceil(W / B)
    P: side of a block in policy pixels
    h, w: policy resolution, P GH x P GW
    n: detections of a frame
    K: classes
"""

import math
import warnings
from dataclasses import dataclass

import torch
from detectron2.structures import RotatedBoxes
from torch import Tensor
from torch.nn import functional as F

from blockcopy_d2.kernels import triton_runs_on
from blockcopy_d2.sparse import num_blocks

__all__ = ["Observation", "paint_output", "rasterize_instances", "resize_to_policy"]

# P as in the paper, where B = 128 makes it a scale of 1/4.
PIXELS_PER_BLOCK = 32


@dataclass
class Observation:
    """
    State of N streams as the policy sees it before it decides, S_t of eq. 2.

    Attributes:
        frame (Tensor): float (N, 3, h, w), normalized as the task network's input, I_t.
        frame_state (Tensor): float (N, 3, h, w), the pixels of each block when it was last
            executed, H_{t-1}.
        output (Tensor): float (N, K, h, w) in [0, 1], the previous output, O_{t-1}.
        grid (Tensor): float (N, 1, GH, GW), 1 where a block of the previous frame was
            executed, A_{t-1}.
        frame_index (int or Tensor): number of the frame in its stream, from 0; int64 (N,) where
            the streams differ.
        age (Tensor or None): int (N, GH, GW), frames since each block was executed, counted up to
            the previous frame; None where it is not known.
        previous_frame (Tensor or None): float (N, 3, h, w), I_{t-1}; None where it is not known.
        gain (Tensor or None): float (N, GH, GW), the information gain that each block had when it
            was last executed; negative where it is not known. None where no policy wants it.
        region (Tensor or None): float (N, GH, GW), infinite for blocks that always run whatever
            the policy decides, minus infinite for those that never do, else 0. None: 0.
        account (Tensor or None): float (N, 2), see :class:`Decision`: the latest one of the policy;
            of no meaning in the first frame that it decides. None where it is not known.
    """

    frame: Tensor
    frame_state: Tensor
    output: Tensor
    grid: Tensor
    frame_index: int | Tensor
    age: Tensor | None = None
    previous_frame: Tensor | None = None
    gain: Tensor | None = None
    region: Tensor | None = None
    account: Tensor | None = None

    def frame_numbers(self):
        """
        Returns:
            Tensor: int64 (N,), ``frame_index`` on the device. A number is filled in there, since a
            copy from the host would wait for the device.
        """
        index = self.frame_index
        if not isinstance(index, Tensor):
            return torch.full(self.frame.shape[:1], index, device=self.frame.device)
        return index.view(-1).expand(len(self.frame))

    def split(self):
        """
        Returns:
            list[Observation]: one for each stream.
        """
        maps = (self.frame, self.frame_state, self.output, self.grid)
        index = self.frame_index
        index = index.split(1) if isinstance(index, Tensor) else [index] * len(self.frame)
        known = (
            [None] * len(self.frame) if x is None else x.split(1)
            for x in (self.age, self.previous_frame, self.gain, self.region, self.account)
        )
        parts = zip(*(m.split(1) for m in maps), index, *known, strict=True)
        return [Observation(*part) for part in parts]


def resize_to_policy(image, grid_shape, pixels_per_block=PIXELS_PER_BLOCK, *, nearest=False):
    """
    Average the pixels of an image down to policy resolution. Pixels of blocks beyond the image
    count as zero.

    Args:
        image (Tensor): float (N, C, H, W).
        grid_shape (tuple[int, int]): GH, GW.
        pixels_per_block (int): P.
        nearest (bool): take the first of the pixels instead of their mean.

    Returns:
        Tensor: float (N, C, h, w).

    Raises:
        ValueError: if no block size gives this grid.
    """
    image_size = tuple(image.shape[-2:])
    factor = _block_size(image_size, grid_shape) / pixels_per_block
    size = _policy_size(grid_shape, pixels_per_block)
    if factor >= 1:
        # Windows that overlap the border keep their full divisor, since the rest of them is zero.
        window = int(factor)
        if nearest:
            return _pad_to(image[..., ::window, ::window], size)
        pooled = F.avg_pool2d(image, window, ceil_mode=True, divisor_override=window * window)
        return _pad_to(pooled, size)
    canvas = _pad_to(image, [round(length * factor) for length in size])
    if nearest:
        return F.interpolate(canvas, size=size, mode="nearest")
    return F.interpolate(canvas, size=size, mode="bilinear", align_corners=False)


def rasterize_instances(
    instances, *, image_size, canvas_size, grid_shape, pixels_per_block=PIXELS_PER_BLOCK
):
    """
    Returns masks of detections at policy resolution. A policy pixel belongs to a detection if its
    centre lies in the mask, or in the box where there are no masks.

    Args:
        instances (Instances): n detections after ``detector_postprocess``, at any output size;
            with "pred_masks", bool (n, H_out, W_out), or "pred_boxes", rotated ones, too.
        image_size (tuple[int, int]): size of the network's input without its padding; the output
            shows the same view.
        canvas_size (tuple[int, int]): H, W.
        grid_shape (tuple[int, int]): GH, GW.
        pixels_per_block (int): P.

    Returns:
        Tensor: bool (n, h, w).

    Raises:
        ValueError: if the masks are not at output size, or no block size gives this grid.
    """
    output_size = instances.image_size
    has_masks = instances.has("pred_masks")
    device = (instances.pred_masks if has_masks else instances.pred_boxes.tensor).device
    rows, columns = policy_centres(
        image_size=image_size,
        output_size=output_size,
        canvas_size=canvas_size,
        grid_shape=grid_shape,
        pixels_per_block=pixels_per_block,
        device=device,
    )
    if has_masks:
        masks = _sample_masks(instances.pred_masks, output_size, rows, columns)
    elif isinstance(instances.pred_boxes, RotatedBoxes):
        masks = _inside_rotated(instances.pred_boxes, rows, columns)
    else:
        x0, y0, x1, y1 = instances.pred_boxes.tensor[:, :, None].unbind(1)
        in_rows = (rows >= y0) & (rows < y1)
        in_columns = (columns >= x0) & (columns < x1)
        masks = in_rows[:, :, None] & in_columns[:, None, :]
    return _pad_to(masks, _policy_size(grid_shape, pixels_per_block))


def policy_centres(
    *, image_size, output_size, canvas_size, grid_shape, pixels_per_block=PIXELS_PER_BLOCK, device
):
    """
    Returns the places of the policy pixels inside an image in the task network's output.

    Args:
        image_size, canvas_size, grid_shape, pixels_per_block: as in :func:`rasterize_instances`.
        output_size (tuple[int, int]): size of the output, which shows the same view as the image.
        device (torch.device):

    Returns:
        tuple[Tensor, Tensor]: float, centres of the rows and of the columns in output pixels.
    """
    step = _block_size(canvas_size, grid_shape) / pixels_per_block
    return tuple(
        _centres(step, length, output_length, device)
        for length, output_length in zip(image_size, output_size, strict=True)
    )


def paint_output(masks, scores, classes, num_classes):
    """
    Paints detections as one map per class: the highest score of the detections that cover a pixel.

    Args:
        masks (Tensor): bool (n, h, w), or of N streams (N, n, h, w).
        scores (Tensor): float (n,), or (N, n).
        classes (Tensor): int64 (n,), or (N, n), in [0, K).
        num_classes (int): K.

    Returns:
        Tensor: float (K, h, w), or (N, K, h, w), zero where there is no detection.
    """
    return paint_maximum(masks, scores, classes, num_classes)


def paint_maximum(masks, values, channels, num_channels):
    """
    Args:
        masks (Tensor): bool (n, h, w), or of N streams (N, n, h, w).
        values (Tensor): non-negative float (n,), or (N, n).
        channels (Tensor): int64 (n,), or (N, n), the map that each mask is painted on.
        num_channels (int):

    Returns:
        Tensor: float (num_channels, h, w), or (N, num_channels, h, w), the highest value of the
        masks that cover a pixel; NaN if one of them is.
    """
    if triton_runs_on(masks.device):
        from .painting import paint_maximum_triton

        return paint_maximum_triton(masks, values, channels, num_channels)
    return paint_maximum_reference(masks, values, channels, num_channels)


def paint_maximum_reference(masks, values, channels, num_channels):
    """:func:`paint_maximum` in plain PyTorch."""
    if masks.dim() > 3:
        streams = zip(masks, values, channels, strict=True)
        return torch.stack([paint_maximum_reference(*one, num_channels) for one in streams])
    # Painting ranks instead of values moves a byte per pixel and mask instead of four.
    ranked, order = values.sort()
    dtype = torch.uint8 if len(values) < 256 else torch.int16
    ranks = torch.empty(len(values), dtype=dtype, device=values.device)
    ranks[order] = torch.arange(1, len(values) + 1, dtype=dtype, device=values.device)
    painted = torch.zeros(num_channels, *masks.shape[1:], dtype=dtype, device=masks.device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="index_reduce", category=UserWarning)
        painted.index_reduce_(0, channels, masks.to(dtype) * ranks[:, None, None], "amax")
    value_of_rank = F.pad(ranked, (1, 0))
    return value_of_rank.index_select(0, painted.flatten().int()).view(painted.shape)


def _inside_rotated(boxes, rows, columns):
    """
    Args:
        boxes (RotatedBoxes): n, in output pixels.
        rows, columns (Tensor): from :func:`policy_centres`.

    Returns:
        Tensor: bool (n, rows, columns), the centres that lie in each box.
    """
    x, y, width, height, angle = boxes.tensor.float()[:, :, None, None].unbind(1)
    cos, sin = angle.deg2rad().cos(), angle.deg2rad().sin()
    dx, dy = columns[None, None, :] - x, rows[None, :, None] - y
    # Along the sides of the box; angles are counter-clockwise, and y points down.
    across, along = cos * dx - sin * dy, sin * dx + cos * dy
    return (across.abs() * 2 < width) & (along.abs() * 2 < height)


def _sample_masks(masks, output_size, rows, columns):
    if masks.dtype != torch.bool or tuple(masks.shape[1:]) != tuple(output_size):
        raise ValueError(
            f"pred_masks is {masks.dtype} of shape {tuple(masks.shape)}; expected torch.bool of"
            f" shape (n, {output_size[0]}, {output_size[1]}), as after detector_postprocess."
        )
    # Rounding must not carry the centre of the last pixel over the border.
    rows = rows.long().clamp_(max=output_size[0] - 1)
    columns = columns.long().clamp_(max=output_size[1] - 1)
    pixels = (rows[:, None] * output_size[1] + columns).flatten()
    sampled = torch.gather(masks.flatten(1), 1, pixels.expand(len(masks), -1))
    return sampled.view(len(masks), len(rows), len(columns))


def _centres(step, length, output_length, device):
    """
    Centres of the policy pixels that lie inside the image, along one axis, in output pixels.

    Args:
        step (float): network input pixels per policy pixel.
        length, output_length (int): length of the image, in network input pixels and in output
            pixels.
    """
    count = math.ceil(length / step - 0.5)
    centres = torch.arange(count, dtype=torch.float32, device=device).add_(0.5)
    return centres.mul_(step * output_length / length)


def _block_size(canvas_size, grid_shape):
    """
    Returns the block size that splits the canvas into this grid. Only one power of two does, except
    for a grid of a single block, for which the smallest one is returned.
    """
    least = max(canvas_size[0] / grid_shape[0], canvas_size[1] / grid_shape[1])
    block_size = 2 ** math.ceil(math.log2(least))
    if num_blocks(block_size, canvas_size) != tuple(grid_shape):
        raise ValueError(
            f"No block size that is a power of two splits a canvas of {tuple(canvas_size)} pixels"
            f" into {grid_shape[0]} x {grid_shape[1]} blocks."
        )
    return block_size


def _policy_size(grid_shape, pixels_per_block):
    return tuple(pixels_per_block * blocks for blocks in grid_shape)


def _pad_to(maps, size):
    """Zeros below and to the right, up to (h, w)."""
    bottom, right = size[0] - maps.shape[-2], size[1] - maps.shape[-1]
    return F.pad(maps, (0, right, 0, bottom)) if bottom or right else maps
