"""
Checks the inputs of a frame of several streams, and puts them in place.

Shape shorthand in this module:

    N: streams of a batch
    C: channels
    H, W: height and width of an image
"""

import logging
from collections.abc import Mapping

import torch
from detectron2.modeling.meta_arch import GeneralizedRCNN, ProposalNetwork
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils.logger import log_first_n

from blockcopy_d2.config_key import whole
from blockcopy_d2.sparse import BlockGrid, MissingFeatures

from .history import flags
from .steps import all_blocks

__all__ = [
    "check_first_frames",
    "check_images",
    "check_inputs",
    "check_list",
    "check_precision",
    "fill_slots",
    "given_blocks",
    "put_image",
    "warn_of_range",
]

_SIDE = whole(1, least=1)


def check_list(batched_inputs):
    """
    Args:
        batched_inputs: argument of a model's call.

    Raises:
        TypeError: it is not a list of dicts.
        ValueError: it is empty.
    """
    if not isinstance(batched_inputs, list | tuple):
        found = type(batched_inputs).__name__
    else:
        others = [type(x).__name__ for x in batched_inputs if not isinstance(x, Mapping)]
        found = f"a list with {others[0]}" if others else None
    if found is not None:
        raise TypeError(
            f"The input of the model is {found}; expected a list of dicts, such as"
            " [{'image': tensor (C, H, W), 'video_id': 'camera 1', 'frame_index': 0}]."
        )
    if not batched_inputs:
        raise ValueError("The input of the model is empty; expected a dict for each image.")


def check_inputs(inputs, streams, channels):
    """
    Args:
        inputs (list[dict or None]): inputs of every stream.
        streams (StreamBatch):
        channels (int): C.

    Returns:
        tuple[int, int]: height and width of the images.

    Raises:
        TypeError, ValueError: the number of inputs does not fit, or see :func:`check_images`.
    """
    frames = sum(x is not None for x in inputs)
    if len(inputs) != streams.num_streams or not frames:
        raise ValueError(
            f"{len(inputs)} inputs for {streams.num_streams} streams, {frames} of them with a"
            " frame; expected an input or None for every stream, and one frame at least."
        )
    return check_images(inputs, channels)


def check_images(frames, channels):
    """
    Args:
        frames (list[dict or None]): Detectron2's input dicts, one at least.
        channels (int): C.

    Returns:
        tuple[int, int]: height and width of the images.

    Raises:
        TypeError: an input has another type.
        ValueError: an input has no image of numbers (C, H, W), the sizes of the images differ, or
            the size of an output is not a whole number.
    """
    frames = {n: x for n, x in enumerate(frames) if x is not None}
    for one in frames.values():
        if not isinstance(one, Mapping):
            raise TypeError(
                f"The input of a frame is {_describe(one)}; expected a dict, such as"
                f" {{'image': tensor ({channels}, height, width)}}."
            )
        image = one.get("image")
        if not _is_image(image, channels):
            raise ValueError(
                f"The 'image' of an input is {_describe(image)}; expected a tensor of shape"
                f" ({channels}, height, width), uint8 or float32, with values from 0 to 255."
            )
        for name in ("height", "width"):
            if name in one:
                _SIDE.check(f"The '{name}' of an input, of the output to make,", one[name])
    sizes = {n: tuple(one["image"].shape[-2:]) for n, one in frames.items()}
    first, size = next(iter(sizes.items()))
    for n, other in sizes.items():
        if other != size:
            raise ValueError(
                f"{len(frames)} frames of a batch have images of the sizes"
                f" {sorted(set(sizes.values()))}; expected images of one size, but {n} of the batch"
                f" has {other} and {first} has {size}. Run streams of another size as a batch of"
                " their own."
            )
    return size


def _is_image(image, channels):
    return (
        isinstance(image, torch.Tensor)
        and image.layout is torch.strided
        and not image.is_meta
        and image.dtype not in (torch.bool, torch.float64)
        and not image.is_complex()
        and image.dim() == 3
        and len(image) == channels
        and image.numel() > 0
    )


def _describe(image):
    if isinstance(image, torch.Tensor):
        kind = "sparse " if image.layout is not torch.strided else "meta " if image.is_meta else ""
        return f"{kind}{str(image.dtype).removeprefix('torch.')} of shape {tuple(image.shape)}"
    shape = f" of shape {tuple(image.shape)}" if hasattr(image, "shape") else ""
    return type(image).__name__ + shape


def warn_of_range(inputs):
    """
    Logs a warning, once, if images seem to have values from 0 to 1. The host waits for the device.

    Args:
        inputs (list[dict or None]): first frames of streams.
    """
    images = [x["image"] for x in inputs if x is not None]
    if any(x.is_floating_point() and 0 < x.max() <= 1 for x in images):
        log_first_n(
            logging.WARNING,
            "The values of an image lie between 0 and 1. Detectron2's models take 0 to 255:"
            " multiply by 255 if the results look wrong.",
            name=__name__,
            key="message",
        )


def check_precision(model):
    """
    Args:
        model (BlockCopyVideoModel): one whose frames run operator by operator.

    Raises:
        ValueError: it is a detector on a CPU whose weights are not float32, which Detectron2's
            detectors there do not run with.
    """
    dtype = next(model.base.backbone.parameters(), torch.empty(0)).dtype
    detects = isinstance(model.base, (GeneralizedRCNN, ProposalNetwork, DenseDetector))
    if detects and dtype is not torch.float32 and model.device.type == "cpu":
        raise ValueError(
            f"The weights of {type(model.base).__name__} are {str(dtype).removeprefix('torch.')},"
            " but Detectron2's detectors run in float32 on a CPU: call model.float(). For half"
            " precision set TEST.AMP.ENABLED, or amp=True, instead."
        )


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
