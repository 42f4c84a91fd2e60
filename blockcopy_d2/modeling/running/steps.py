"""
The steps of a frame besides the task network: check its size, prepare the policy's input, choose
the blocks to execute, and update the history. They are the same for all ways to run a frame.

Shape shorthand in this module:

    N: streams of a batch
    H, W: height and width of the network's input, padding included
    GH, GW: rows and columns of the block grid, ceil(H / B) x ceil(W / B)
    h, w: policy resolution, P x P pixels per block
"""

import logging

import torch
from detectron2.layers import move_device_like
from detectron2.structures import ImageList
from detectron2.utils.logger import log_first_n
from torch.nn import functional as F

from blockcopy_d2.policy import Observation, resize_to_policy
from blockcopy_d2.sparse import BlockGrid, num_blocks

from .advance import advance
from .batch_task import block_gains, observe_outputs, paint_outputs
from .history import StreamHistory, flags, viewed_anew
from .refresh import due_for_refresh

__all__ = [
    "all_blocks",
    "at_policy_resolution",
    "choose_blocks",
    "fit_to_size",
    "normalize",
    "pad",
    "policies_of",
    "remember",
]


def fit_to_size(model, streams, image_size):
    """
    Set the size of the next frames of streams. Streams of another size start anew, even if both
    sizes are padded to the same canvas, since the border of the picture lies elsewhere.

    Args:
        model (BlockCopyVideoModel):
        streams (StreamBatch):
        image_size (tuple[int, int]): height, width.
    """
    if image_size == streams.image_size:
        return
    if streams.image_size is not None:
        if streams.started:
            log_first_n(
                logging.WARNING,
                f"The frames of a stream changed size from {tuple(streams.image_size)} to"
                f" {image_size}: the stream starts anew.",
            )
        streams.release()
    like = torch.empty(1, *image_size, device="meta")
    canvas_size = tuple(pad(model, [like]).tensor.shape[-2:])
    streams.image_size, streams.canvas_size = image_size, canvas_size


def normalize(model, images):
    """
    Args:
        model (BlockCopyVideoModel):
        images (list[Tensor] or Tensor): (3, height, width) each, or (N, 3, height, width) on the
            model's device, of pixel values.

    Returns:
        ImageList: images normalized and padded on the model's device, as the wrapped model does.
    """
    mean, std = model.base.pixel_mean, model.base.pixel_std
    if isinstance(images, torch.Tensor):
        return pad(model, (images - mean) / std)
    return pad(model, [(move_device_like(image, mean) - mean) / std for image in images])


def pad(model, images):
    """
    Args:
        model (BlockCopyVideoModel):
        images (list[Tensor] or Tensor): (3, height, width) each, or (N, 3, height, width).

    Returns:
        ImageList: padded with zeros, as the wrapped model does.
    """
    backbone = model.base.backbone
    if isinstance(images, torch.Tensor):
        # All have one size: normalized in one launch.
        height, width = images.shape[-2:]
        canvas = pad(model, [torch.empty(images.shape[1:], device="meta")]).tensor.shape[-2:]
        padded = images
        if tuple(canvas) != (height, width):
            padded = F.pad(images, (0, canvas[1] - width, 0, canvas[0] - height))
        return ImageList(padded, [(height, width)] * len(images))
    return ImageList.from_tensors(
        images, backbone.size_divisibility, padding_constraints=backbone.padding_constraints
    )


def at_policy_resolution(model, images):
    """
    Args:
        model (BlockCopyVideoModel):
        images (ImageList): from :func:`normalize`.

    Returns:
        Tensor: float (N, 3, h, w).
    """
    grid_shape = num_blocks(model.block_size, images.tensor.shape[-2:])
    nearest = model.policy_resize == "nearest"
    pixels_per_block = model.task.pixels_per_block
    return resize_to_policy(images.tensor, grid_shape, pixels_per_block, nearest=nearest)


def policies_of(model, streams):
    """
    Returns:
        list[Policy]: one for every stream, its own or the model's.
    """
    return streams.policies or [model.policy] * streams.num_streams


def all_blocks(model, streams):
    """
    Returns:
        BlockGrid: that of a first frame.
    """
    return BlockGrid.full(
        block_size=model.block_size,
        image_size=streams.canvas_size,
        batch=streams.num_streams,
        device=model.device,
    )


def choose_blocks(model, arrival, streams, *, learning=False, present=None):
    """
    Ask the policies, and add the blocks that are executed in any case.

    Args:
        model (BlockCopyVideoModel):
        arrival (Arrival): the frames.
        streams (StreamBatch): streams that have had a frame.
        learning (bool or list[bool]): keep the autograd graph; one flag for each policy if every
            stream has its own.
        present (sequence[bool] or Tensor or None): the streams that have a frame; None: all.

    Returns:
        tuple[Observation, list[Decision], BlockGrid]: the policies' input; their decisions, one for
        all streams, or one for each if every stream has its own policy; and the blocks to execute.
    """
    options, history = model.options, streams.history
    observation, decisions = _ask(model, arrival.picture, streams, learning)
    drawn, regions = [decision.active for decision in decisions], streams.regions
    active = torch.cat(drawn) if len(drawn) > 1 else drawn[0]
    active = regions.confine(active)
    if options.refresh_every:
        # Policies that look at regions have taken these. Blocks that never run must not take the
        # turns of others.
        settled = active | regions.never
        active = active | due_for_refresh(settled, history.age, options.refresh_every)
    if options.dense_above < 1:
        share = active.float().mean(dim=(1, 2), keepdim=True)
        active = regions.confine(active | (share > options.dense_above))
    active = active | arrival.follows_nothing[:, None, None]
    if present is not None:
        active = active & flags(present, active)
    grid = BlockGrid(active, block_size=options.block_size, image_size=streams.canvas_size)
    return observation, decisions, grid


def _bias(model, streams):
    """
    Returns:
        Tensor: float (N, GH, GW), see :class:`Observation`: blocks that are due for a refresh run,
        too, so that a policy counts them as part of its budget.
    """
    regions, period = streams.regions, model.options.refresh_every
    if not period:
        return regions.bias
    due = due_for_refresh(regions.always | regions.never, streams.history.age, period)
    return regions.bias.masked_fill(due, torch.inf)


def _ask(model, picture, streams, learning):
    history = streams.history
    observation = Observation(
        frame=picture,
        frame_state=history.frame_state,
        output=history.painted,
        grid=history.active[:, None].float(),
        frame_index=history.frame_index,
        age=history.age,
        previous_frame=history.frame,
        gain=history.gain,
        region=_bias(model, streams),
        account=history.account,
    )
    if not isinstance(learning, list):
        learning = [learning] * streams.num_streams
    if streams.policies is None:
        with torch.set_grad_enabled(any(learning)):
            return observation, [model.policy(observation)]
    decisions = []
    for policy, own, wanted in zip(streams.policies, observation.split(), learning, strict=True):
        with torch.set_grad_enabled(wanted):
            decisions.append(policy(own))
    return observation, decisions


def remember(
    model,
    streams,
    arrival,
    outputs,
    grid,
    *,
    decisions=None,
    motion_features=None,
    present=None,
):
    """
    Update the history of streams with a frame.

    Args:
        model (BlockCopyVideoModel):
        streams (StreamBatch):
        arrival (Arrival): the frames.
        outputs (list[dict] or dict): outputs of the task network, for every stream, or of all
            streams as one, as StaticHeads give them.
        grid (BlockGrid): the blocks that the frame executed.
        decisions (list[Decision] or None): from :func:`choose_blocks`; None where no policy was
            asked.
        motion_features (MotionFeatures or None): features of the frame.
        present (sequence[bool] or None): the streams that had a frame; None: all.
    """
    num_streams, task, geometry = (
        streams.num_streams,
        model.task,
        {
            "image_size": streams.image_size,
            "canvas_size": streams.canvas_size,
            "grid_shape": grid.shape,
        },
    )
    if isinstance(outputs, list):
        seen = [task.observe(output, **geometry) for output in outputs]
        painted = torch.stack([task.paint(x) for x in seen])
    else:
        seen = observe_outputs(task, outputs, num_streams, **geometry)
        painted = paint_outputs(task, seen, num_streams)
    gain = None
    if streams.history and any(policy.wants_gain for policy in policies_of(model, streams)):
        gain = _measure_gain(task, streams.history, seen, grid.active)
    history = streams.history or StreamHistory.empty(arrival.picture, painted, grid.active)
    streams.history = history.after(
        advance(history, arrival, painted, grid.active, gain),
        frame=arrival.picture,
        active=grid.active,
        account=_account_after(history, decisions or []),
        outputs=seen,
        motion_features=motion_features,
        present=present,
    )


def _account_after(history, decisions):
    """
    Returns:
        Tensor: float (N, 2), see :class:`StreamHistory`.
    """
    if all(decision.account is None for decision in decisions):
        return history.account
    old = history.account.split([len(decision.active) for decision in decisions])
    pairs = zip(decisions, old, strict=True)
    return torch.cat([old if one.account is None else one.account for one, old in pairs])


def _measure_gain(task, history, seen, active):
    """
    Returns:
        Tensor: float (N, GH, GW), the information gain of a frame.
    """
    grid_shape = tuple(active.shape[1:])
    if isinstance(seen, list):
        unknown = torch.full(grid_shape, torch.nan, device=active.device)
        return torch.stack(
            [
                unknown if before is None else task.block_gain(now, before, grid_shape)
                for now, before in zip(seen, history.outputs, strict=True)
            ]
        )
    # Their memory is that of the last frame, which was written to since.
    before = viewed_anew(history.outputs)
    return block_gains(task, seen, before, len(active), grid_shape)
