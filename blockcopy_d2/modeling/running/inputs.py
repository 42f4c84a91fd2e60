"""
Checks the inputs of a frame of several streams, and puts them in place.

Shape shorthand in this module:

    N: streams of a batch
    C: channels
    H, W: height and width of an image
"""

import torch

from blockcopy_d2.sparse import BlockGrid, MissingFeatures

from .history import flags
from .steps import all_blocks

__all__ = [
    "check_first_frames",
    "check_images",
    "check_inputs",
    "fill_slots",
    "given_blocks",
    "put_image",
]


def check_inputs(inputs, streams):
    """
    Args:
        inputs (list[dict or None]): inputs of every stream.
        streams (StreamBatch):

    Returns:
        tuple[int, int]: height and width of the images.

    Raises:
        ValueError: if the number of inputs or the sizes of their images do not fit, or one has no
            image.
    """
    frames = [x for x in inputs if x is not None]
    if len(inputs) != streams.num_streams or not frames:
        raise ValueError(
            f"{len(inputs)} inputs for {streams.num_streams} streams, {len(frames)} of them with a"
            " frame; expected an input or None for every stream, and one frame at least."
        )
    return check_images(frames)


def check_images(frames):
    """
    Args:
        frames (list[dict]): Detectron2's input dicts.

    Returns:
        tuple[int, int]: height and width of the images.

    Raises:
        ValueError: if the sizes of the images differ, or an input has no image.
    """
    images = [x.get("image") for x in frames]
    for image in images:
        if not isinstance(image, torch.Tensor) or image.dim() != 3 or not image.numel():
            found = tuple(image.shape) if hasattr(image, "shape") else type(image).__name__
            raise ValueError(
                f"The 'image' of an input is {type(image).__name__} {found}; expected a tensor"
                " (C, H, W)."
            )
    sizes = sorted({tuple(image.shape[-2:]) for image in images})
    if len(sizes) != 1:
        raise ValueError(
            f"{len(frames)} frames of a batch have images of the sizes {sizes}; expected images of"
            " one size. Run streams of another size as a batch of their own."
        )
    return sizes[0]


def check_first_frames(grid, streams, present):
    """
    Args:
        grid (BlockGrid): grid passed by the caller.
        streams (StreamBatch):
        present (list[bool]): the streams that have a frame.

    Raises:
        MissingFeatures: the frame is the first of a video, and does not run all blocks.
    """
    for n, (count, is_present) in enumerate(zip(streams.counts, present, strict=True)):
        if is_present and not count and not grid.active[n].all():
            raise MissingFeatures(
                "The first frame of a stream must run all blocks: pass BlockGrid.full(), or None to"
                f" let the model see to it. That of stream {n} of {streams.num_streams} does not."
            )


def fill_slots(inputs):
    """
    Args:
        inputs (list[dict or None]): inputs of every stream.

    Returns:
        list[dict]: inputs with black frames for streams without one, since the network runs whole
        batches.
    """
    image = next(x["image"] for x in inputs if x is not None)
    idle = {"image": torch.zeros_like(image)}
    return [idle if x is None else x for x in inputs]


def put_image(image, place):
    """
    Copy an image to the memory where frames are read. The host does not wait for the device, and
    may overwrite the image at once.

    Args:
        image (Tensor): (C, height, width), on any device.
        place (Tensor): memory of the same shape.
    """
    if place.is_cuda and not image.is_cuda:
        # From pageable memory the copy would wait for running work. From the caller's memory, if
        # that is pinned, the caller would have to wait for the copy.
        pinned = torch.empty(image.shape, dtype=place.dtype, pin_memory=True)
        image = pinned.copy_(image)
    place.copy_(image, non_blocking=True)


def given_blocks(model, grid, streams, present):
    """
    Args:
        model (BlockCopyVideoModel):
        grid (BlockGrid): grid passed by the caller.
        streams (StreamBatch):
        present (list[bool]): the streams that have a frame.

    Returns:
        BlockGrid: the blocks to execute: all blocks of a stream without features yet, none of a
        stream without a frame.
    """
    if streams.lost or not streams.started:
        return all_blocks(model, streams)
    if all(present):
        return grid
    active = grid.active & flags(present, grid.active)
    return BlockGrid(active, block_size=grid.block_size, image_size=grid.image_size)
