"""
Draws a frame with its detections, its executed blocks and a caption.

Shape shorthand: an image of H x W pixels under a grid of GH x GW blocks.
"""

import functools
import logging
import math

import numpy as np
from detectron2.utils.colormap import colormap
from detectron2.utils.logger import log_first_n
from PIL import Image, ImageDraw, ImageFont

from blockcopy_d2.modeling import proposal_instances

from .blocks import draw_region, tint_blocks
from .motion_field import draw_motion

__all__ = ["draw_frame", "found_instances", "pixel_classes"]

_LABEL_THRESHOLD = 0.5
_MASK_ALPHA = 0.4
_CLASS_ALPHA = 0.55
# Class colours, matplotlib's notation, clear of the tint. Neighbours in Cityscapes' order of
# classes (person, rider, car, truck, bus, train, motorcycle, bicycle) are far apart
_PALETTE = (
    *("#ff3b5c", "#e64bff", "#3d8bff", "#9b5cff", "#2ecc71"),
    *("#00b3a4", "#ff8fab", "#35e0f0", "#b8e04a", "#c97b63"),
)
_CAPTION_BACKGROUND = (24, 24, 24)
_CAPTION_COLOR = (235, 235, 235)


def draw_frame(
    image,
    instances,
    active=None,
    metadata=None,
    *,
    classes=None,
    block_size=128,
    scale=1.0,
    region=None,
    field=None,
    cell_size=16,
    caption=(),
):
    """
    Args:
        image (ndarray): uint8, (H, W, 3), BGR. It stays as it is.
        instances (Instances or None): detections in pixels of ``image``, with ``scores``,
            ``pred_boxes`` (rotated ones, too) and possibly ``pred_masks`` (n, H, W) and
            ``pred_keypoints`` (n, K, 3). All are drawn, in the colour of their class; those
            with a score above 0.5 get a label. ``pred_classes`` may be missing, see
            :func:`found_instances`.
        active (Tensor or ndarray or None): bool, (GH, GW): the executed blocks, which are tinted
            and outlined; the others are dimmed. None: the frame was not run in blocks.
        metadata (Metadata or None): Detectron2's metadata; ``thing_classes`` names the classes of
            instances, ``stuff_colors`` (RGB) colours those of pixels, ``keypoint_names`` and
            ``keypoint_connection_rules`` say how to connect keypoints. Classes without a name are
            labelled by their number.
        classes (Tensor or ndarray or None): int, (H, W): the class of every pixel, laid over the
            image in its colour.
        block_size (int): side of a block in pixels of the network's input.
        scale (float): pixels of the network's input per pixel of ``image``.
        region (BlockRegion or None): blocks that always run get a frame, those that never do lose
            their colours.
        field (Tensor or ndarray or None): float (2, FH, FW): the motion since the last frame, to be
            drawn in colours, see :func:`draw_motion`.
        cell_size (int): side of its cells in pixels of the network's input.
        caption (str or sequence[str]): text of a strip below the picture, in equal columns, so
            that they keep their place from frame to frame. Empty: no strip.

    Returns:
        ndarray: uint8, (H, W, 3), BGR; with a caption, the strip adds about H / 18 rows.
    """
    picture = image if classes is None else _blend_classes(image, classes, metadata)
    if active is not None:
        picture = tint_blocks(picture, np.asarray(active, dtype=bool), block_size / scale)
    if region is not None:
        picture = draw_region(picture, region, block_size / scale)
    if field is not None:
        picture = draw_motion(picture, field, cell_size=cell_size, scale=scale)
    if instances is not None and len(instances):
        picture = _draw_instances(picture, instances.to("cpu"), metadata)
    if caption:
        columns = (caption,) if isinstance(caption, str) else tuple(caption)
        picture = np.concatenate([picture, _caption_strip(columns, *image.shape[:2])])
    return np.ascontiguousarray(picture)


def found_instances(output):
    """
    Args:
        output (dict): output of a model, for one frame.

    Returns:
        Instances or None: instances for ``draw_frame``; proposals, without classes, for a model
        that returns only those; None for outputs with neither.
    """
    if "proposals" in output and "instances" not in output:
        return proposal_instances(output["proposals"])
    return output.get("instances")


def pixel_classes(output):
    """
    Args:
        output (dict): output of a model, for one frame.

    Returns:
        Tensor or None: int64 (H, W) on the CPU, classes for ``draw_frame``; None for outputs with
        instances, or without classes of pixels.
    """
    if "instances" in output or "sem_seg" not in output:
        return None
    return output["sem_seg"].argmax(dim=0).cpu()


def _blend_classes(image, classes, metadata):
    colors = metadata.get("stuff_colors") if metadata is not None else None
    colors = colormap(rgb=False) if colors is None else np.asarray(colors)[:, ::-1]
    painted = colors[np.asarray(classes) % len(colors)]
    return (image * (1 - _CLASS_ALPHA) + painted * _CLASS_ALPHA).round().astype(np.uint8)


def _draw_instances(image, instances, metadata):
    # Brings Matplotlib along, which nothing else here needs.
    from .fast_visualizer import FastVisualizer

    visualizer = FastVisualizer(image[:, :, ::-1], metadata)
    has_classes = instances.has("pred_classes")
    classes = instances.pred_classes.tolist() if has_classes else [0] * len(instances)
    colors = [_PALETTE[c % len(_PALETTE)] for c in classes]
    masks = np.asarray(instances.pred_masks) if instances.has("pred_masks") else None
    boxes = instances.pred_boxes.tensor.numpy()
    visualizer.overlay_instances(
        # A mask shows the border of an object better than its box.
        boxes=boxes if masks is None else None,
        masks=masks,
        assigned_colors=colors,
        alpha=_MASK_ALPHA,
    )
    if instances.has("pred_keypoints"):
        for keypoints in instances.pred_keypoints:
            visualizer.draw_and_connect_keypoints(keypoints)
    known = visualizer.metadata.get("thing_classes") if has_classes else ["object"]
    names = _class_names(known, classes)
    font_size = max(6, math.sqrt(image.shape[0] * image.shape[1]) / 105)
    for (left, top), score, name in zip(_corners(boxes), instances.scores.tolist(), names):
        if score > _LABEL_THRESHOLD:
            visualizer.draw_text(
                f"{name} {score:.0%}",
                (left, max(top - 1.9 * font_size, 0)),
                font_size=font_size,
                color="white",
                horizontal_alignment="left",
            )
    return visualizer.get_output().get_image()[:, :, ::-1]


def _class_names(known, classes):
    """
    Args:
        known (list[str] or None): names of the metadata.
        classes (list[int]): classes of the instances.

    Returns:
        list[str]: a name for each instance.
    """
    if not known:
        return [str(label) for label in classes]
    if max(classes) >= len(known):
        log_first_n(
            logging.WARNING,
            f"The metadata name {len(known)} classes (thing_classes), but the model found class"
            f" {max(classes)}: those without a name are labelled by number, and the names of the"
            " others may be those of another data set. See DATASETS.TEST of the config.",
            key="caller",
        )
    # Matplotlib reads text between dollars as a formula.
    known = [str(name).replace("$", r"\$") for name in known]
    return [known[label] if label < len(known) else f"class {label}" for label in classes]


def _corners(boxes):
    """Upper left corners (n, 2) of boxes, (x0, y0, x1, y1) or (center x, center y, w, h, angle)."""
    return boxes[:, :2] - boxes[:, 2:4] / 2 if boxes.shape[1] == 5 else boxes[:, :2]


@functools.lru_cache(maxsize=8)
def _font(size):
    return ImageFont.load_default(size)


def _caption_strip(columns, height, width):
    rows = max(16, round(height / 36) * 2)
    strip = Image.new("RGB", (width, rows), _CAPTION_BACKGROUND[::-1])
    draw = ImageDraw.Draw(strip)
    margin = rows // 2
    size = round(rows * 0.58)
    # A long caption on a narrow picture is set smaller instead of being cut.
    pitch = (width - margin) / len(columns)
    widest = max(draw.textlength(text, font=_font(size)) for text in columns)
    size = max(6, math.floor(size * min(1, (pitch - margin / 2) / max(widest, 1))))
    for i, text in enumerate(columns):
        position = (margin + i * pitch, rows / 2)
        draw.text(position, text, font=_font(size), fill=_CAPTION_COLOR[::-1], anchor="lm")
    return np.asarray(strip)[:, :, ::-1]
