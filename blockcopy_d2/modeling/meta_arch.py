"""
The video model: any Detectron2 meta-architecture, run block by block.

Shape shorthand in this module:

    B: side of a block in pixels of the network's input
    H, W: height and width of the network's input, padding included
    GH, GW: rows and columns of the block grid, ceil(H / B) x ceil(W / B)
    h, w: policy resolution, 32 GH x 32 GW
    K: classes of the task network's output
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.layers import move_device_like
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList
from detectron2.utils.logger import log_first_n
from torch import Tensor, nn
from torch.nn import functional as F

from blockcopy_d2.config import base_config
from blockcopy_d2.policy import Decision, Observation, build_policy, resize_to_policy
from blockcopy_d2.sparse import BlockGrid, BlockSparseModule, block_sparse, num_blocks
from blockcopy_d2.sparse.grid import check_stride

from .heads import convert_heads
from .roi_features import planar_features
from .stream import StreamPool
from .task import build_task
from .timing import StageTimer, timed_modules

__all__ = ["BlockCopyVideoModel", "FrameResult"]


@dataclass
class FrameResult:
    """
    What one frame of one stream gave.

    Attributes:
        output (dict): in Detectron2's format.
        frame (Tensor): float (1, 3, h, w), normalized, at policy resolution.
        observation (Observation or None): what the policy saw; None where it was not asked.
        decision (Decision or None): of the policy; its logits are None on a first frame, which
            executes all blocks unasked. None where the caller gave the grid.
        grid (BlockGrid): the executed blocks.
        macs, dense_macs (int): multiply-accumulates of the block-sparse modules, executed and
            as they would be with all blocks.
        detections, previous_detections: this output and the last one, as
            :meth:`BlockCopyVideoModel.information_gain` compares them; the last is None on a
            first frame.
        broken (Tensor): bool scalar on the device; this frame or the last was not finite, so
            nothing may be learned from the difference.
        timer (StageTimer):
    """

    output: dict
    frame: Tensor
    observation: Observation | None
    decision: Decision | None
    grid: BlockGrid
    macs: int
    dense_macs: int
    detections: Any
    previous_detections: Any
    broken: Tensor
    timer: StageTimer

    @property
    def seconds(self):
        """
        dict[str, float]: seconds spent in "preprocess", "policy", "network" (the block-sparse
        modules), "heads" (the rest of the task network) and "observe". Waits for the device.
        """
        seconds = self.timer.seconds()
        seconds["heads"] = seconds.pop("inference") - seconds["network"]
        return seconds


@META_ARCH_REGISTRY.register()
class BlockCopyVideoModel(nn.Module):
    """
    Runs a Detectron2 model on video: a policy picks the blocks of a frame worth executing, the
    block-sparse modules of the model compute those and keep their features elsewhere (section 3
    of the paper).

    Inputs and outputs are Detectron2's. Inputs that carry a "video_id" belong to a stream; any
    number of streams may be interleaved, and a stream starts with a new id or with a
    "frame_index" of 0. Inputs without are answered by the model as it is, dense and stateless.

    The weights of the task network are frozen and it stays in inference mode. Its state dict is
    that of the wrapped model, plus the policy's under "policy.".
    """

    @configurable
    def __init__(self, *, base, policy, task, block_size, max_streams):
        """
        Args:
            base (nn.Module): a Detectron2 meta-architecture with block-sparse modules in it, see
                :func:`convert_heads`. Its backbone tells the padding, ``pixel_mean`` and
                ``pixel_std`` the normalization of what the policy sees.
            policy (Policy): picks the blocks.
            task (InstanceTask or SemanticTask): what the policy sees of an output.
            block_size (int): B.
            max_streams (int): streams whose features are kept.

        Raises:
            ValueError: if blocks of ``block_size`` do not align with a feature map of the
                backbone.
        """
        super().__init__()
        for shape in base.backbone.output_shape().values():
            check_stride(block_size, shape.stride)
        # The children of the wrapped model are ours too, so that the names in the state dict stay
        # Detectron2's; the model itself is no child.
        object.__setattr__(self, "base", base.eval().requires_grad_(False))
        self._parameters = base._parameters
        self._buffers = base._buffers
        self._non_persistent_buffers_set = base._non_persistent_buffers_set
        for name, child in base.named_children():
            self.add_module(name, child)
        self.policy = policy
        self.task = task
        self.block_size = block_size
        self.streams = StreamPool(max_streams)
        self.eval()

    @classmethod
    def from_config(cls, cfg):
        options = cfg.MODEL.BLOCKCOPY
        base_cfg = cfg.clone()
        base_cfg.defrost()
        base_cfg.MODEL.META_ARCHITECTURE = options.BASE_META_ARCHITECTURE
        base = META_ARCH_REGISTRY.get(options.BASE_META_ARCHITECTURE)(base_cfg)
        task = build_task(base_config(cfg))
        return {
            "base": convert_heads(base),
            "policy": build_policy(cfg, num_classes=task.num_classes),
            "task": task,
            "block_size": options.BLOCK_SIZE,
            "max_streams": options.MAX_STREAMS,
        }

    @property
    def device(self):
        return self.base.pixel_mean.device

    def train(self, mode=True):
        """The task network is frozen and the policy keeps its own mode: there is none to set."""
        return super().train(False)

    def forward(self, batched_inputs):
        """
        Args:
            batched_inputs (list[dict]): as the wrapped model takes them; with "video_id" (str)
                and "frame_index" (int) in every dict, or in none.

        Returns:
            list[dict]: as the wrapped model gives them.
        """
        in_video = ["video_id" in x for x in batched_inputs]
        if not any(in_video):
            return self.base(batched_inputs)
        if not all(in_video):
            raise ValueError(
                f"{in_video.count(False)} of {len(in_video)} inputs of a batch have no 'video_id'."
                " Give every frame one, or none to run them as still images."
            )
        return [
            self.step(x, self.streams.get(x["video_id"], x.get("frame_index"))).output
            for x in batched_inputs
        ]

    @torch.no_grad()
    def step(self, inputs, stream, *, learning=False, grid=None):
        """
        Run the next frame of a stream.

        Args:
            inputs (dict): one of Detectron2's input dicts.
            stream (VideoStream): brought up to date by this call.
            learning (bool): keep the autograd graph of the policy, for an update.
            grid (BlockGrid): execute these blocks instead of asking the policy.

        Returns:
            FrameResult:
        """
        timer = StageTimer(self.device)
        with timer.stage("preprocess"):
            frame, image_size, canvas_size = self._preprocess(inputs["image"])
            if stream.started and stream.canvas_size != canvas_size:
                log_first_n(
                    logging.WARNING,
                    f"The frames of a stream changed size from {stream.canvas_size} to"
                    f" {canvas_size} (padded): the stream starts anew.",
                )
                stream.reset()
        observation = decision = None
        if grid is None:
            with timer.stage("policy"):
                observation, decision, grid = self._decide(frame, stream, canvas_size, learning)
        sparse_modules = [m for m in self.base.modules() if isinstance(m, BlockSparseModule)]
        with (
            timer.stage("inference"),
            timed_modules(timer, "network", sparse_modules),
            planar_features(self.base, stream.roi_features, grid),
            block_sparse(self.base, grid, stream.features) as work,
        ):
            output = self.base([inputs])[0]
        previous, was_broken = stream.output, stream.broken
        with timer.stage("observe"):
            self._update(stream, frame, output, grid, image_size)
        return FrameResult(
            output=output,
            frame=frame,
            observation=observation,
            decision=decision,
            grid=grid,
            macs=work.macs,
            dense_macs=work.dense_macs,
            detections=stream.output,
            previous_detections=previous,
            broken=was_broken | stream.broken,
            timer=timer,
        )

    @torch.no_grad()
    def information_gain(self, result):
        """
        Args:
            result (FrameResult): of a frame that is not the first of its stream.

        Returns:
            Tensor: float (1, GH, GW), eq. 1. NaN where the frame was not finite, which tells the
            learner to leave it out.
        """
        gain = self.task.block_gain(
            result.detections, result.previous_detections, result.grid.shape
        )
        return gain[None].masked_fill(result.broken, torch.nan)

    def _preprocess(self, image):
        """Normalizes and pads as the wrapped model does, then resizes to policy resolution."""
        backbone = self.base.backbone
        image = move_device_like(image, self.base.pixel_mean)
        image = (image - self.base.pixel_mean) / self.base.pixel_std
        images = ImageList.from_tensors(
            [image], backbone.size_divisibility, padding_constraints=backbone.padding_constraints
        )
        canvas_size = tuple(images.tensor.shape[-2:])
        grid_shape = num_blocks(self.block_size, canvas_size)
        return resize_to_policy(images.tensor, grid_shape), images.image_sizes[0], canvas_size

    def _decide(self, frame, stream, canvas_size, learning):
        layout = {"block_size": self.block_size, "image_size": canvas_size}
        if not stream.started:
            grid = BlockGrid.full(**layout, device=frame.device)
            return None, Decision(active=grid.active, logits=None), grid
        observation = Observation(
            frame=frame.nan_to_num(),
            frame_state=stream.frame_state,
            output=stream.painted,
            grid=stream.active[:, None].float(),
            frame_index=stream.frames,
        )
        with torch.set_grad_enabled(learning):
            decision = self.policy(observation)
        # Features that are not finite must go, and a frame that is not finite spoils every block.
        broken = stream.broken | ~torch.isfinite(frame).all()
        return observation, decision, BlockGrid(decision.active | broken, **layout)

    def _update(self, stream, frame, output, grid, image_size):
        seen = self.task.observe(
            output, image_size=image_size, canvas_size=grid.image_size, grid_shape=grid.shape
        )
        painted = self.task.paint(seen)[None]
        stream.broken = ~(torch.isfinite(frame).all() & torch.isfinite(painted).all())
        frame, painted = frame.nan_to_num(), painted.nan_to_num()
        if stream.started:
            executed = F.interpolate(grid.active[:, None].float(), size=frame.shape[-2:]) > 0
            frame = torch.where(executed, frame, stream.frame_state)
        stream.frame_state = frame
        stream.painted = painted
        stream.output = seen
        stream.active = grid.active
        stream.canvas_size = grid.image_size
        stream.frames += 1
