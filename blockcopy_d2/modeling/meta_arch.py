"""
The video model: any Detectron2 meta-architecture, run block by block.

Shape shorthand in this module:

    N: streams of a batch
    B: side of a block in pixels of the network's input
    H, W: height and width of the network's input, padding included
    GH, GW: rows and columns of the block grid, ceil(H / B) x ceil(W / B)
    h, w: policy resolution, P x P pixels per block (MODEL.BLOCKCOPY.POLICY.PIXELS_PER_BLOCK)
    K: classes of the task network's output
"""

import copy
import logging
import math

import torch
from detectron2.config import configurable
from detectron2.layers import move_device_like
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList
from detectron2.utils.logger import log_first_n
from torch import nn

from blockcopy_d2.config import base_config
from blockcopy_d2.policy import (
    AllBlocks,
    Decision,
    Observation,
    build_policy,
    resize_to_policy,
)
from blockcopy_d2.sparse import BlockGrid, BlockSparseModule, block_sparse, num_blocks
from blockcopy_d2.sparse.grid import check_stride

from .heads import convert_model
from .learning import learn
from .precision import inference_autocast
from .refresh import due_for_refresh
from .result import FrameResult
from .scene_cut import scene_cuts
from .stream import StreamBatch, StreamPool, VideoStream
from .task import build_task
from .timing import StageTimer, timed_modules

__all__ = ["BlockCopyVideoModel"]


@META_ARCH_REGISTRY.register()
class BlockCopyVideoModel(nn.Module):
    """
    Runs a Detectron2 model on video: a policy picks the blocks of a frame worth executing, the
    block-sparse modules of the model compute those and keep their features elsewhere (section 3
    of the paper).

    Inputs and outputs are Detectron2's. Inputs that carry a "video_id" belong to a stream; any
    number of streams may be interleaved, and a stream starts with a new id or with a
    "frame_index" of 0. Inputs without are answered by the model as it is, dense and stateless.
    :meth:`step` and :meth:`step_batch` do the same with state that the caller holds.

    The weights of the task network are frozen and it stays in inference mode. Its state dict is
    that of the wrapped model, plus the policy's under "policy.".

    Attributes:
        learner (OnlineLearner or None): teaches the policy on every frame given to
            :meth:`forward`. None until someone sets it.
    """

    @configurable
    def __init__(
        self,
        *,
        base,
        policy,
        task,
        block_size,
        max_streams,
        scene_cut=0.0,
        refresh_every=0,
        amp=False,
    ):
        """
        Args:
            base (nn.Module): a Detectron2 meta-architecture with block-sparse modules in it, see
                :func:`convert_model`. Its backbone tells the padding, ``pixel_mean`` and
                ``pixel_std`` the normalization of what the policy sees.
            policy (Policy): picks the blocks.
            task (InstanceTask or SemanticTask): what the policy sees of an output.
            block_size (int): B.
            max_streams (int): streams whose features are kept.
            scene_cut (float): share of a frame that differs from the last one's at a cut, see
                :func:`scene_cuts`; such frames execute all blocks. 0: there are no cuts.
            refresh_every (int): frames in which every block is executed at least once, see
                :func:`due_for_refresh`. 0: no limit.
            amp (bool): run the task network in half precision, see :func:`inference_autocast`.
                Its weights stay as they are.

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
        self.scene_cut = scene_cut
        self.refresh_every = refresh_every
        self.amp = amp
        self.streams = StreamPool(max_streams)
        self.learner = None
        self.eval()

    @classmethod
    def from_config(cls, cfg):
        options = cfg.MODEL.BLOCKCOPY
        base_cfg = cfg.clone()
        base_cfg.defrost()
        base_cfg.MODEL.META_ARCHITECTURE = options.BASE_META_ARCHITECTURE
        base = META_ARCH_REGISTRY.get(options.BASE_META_ARCHITECTURE)(base_cfg)
        return {"base": base, **cls.parts(cfg, base, build_task(base_config(cfg)))}

    @classmethod
    def parts(cls, cfg, base, task):
        """
        What makes a video model of a meta-architecture, which is made block-sparse for it.

        Args:
            cfg (CfgNode): of the video model; nothing of the meta-architecture is read from it.
            base (nn.Module): the meta-architecture, changed in place.
            task (InstanceTask, SemanticTask or PanopticTask): see :func:`infer_task`.

        Returns:
            dict: the arguments of this class besides ``base``. A model that cannot run in blocks
            gets a policy that executes all of them.
        """
        options = cfg.MODEL.BLOCKCOPY
        if convert_model(base, options.BACKEND):
            policy = build_policy(cfg, num_classes=task.num_classes)
        else:
            policy = AllBlocks()
        return {
            "policy": policy,
            "task": task,
            "block_size": options.BLOCK_SIZE,
            "max_streams": options.MAX_STREAMS,
            "scene_cut": options.SCENE_CUT,
            "refresh_every": options.REFRESH_EVERY,
            "amp": cfg.TEST.AMP.ENABLED,
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
            with inference_autocast(self.device, self.amp):
                return self.base(batched_inputs)
        if not all(in_video):
            raise ValueError(
                f"{in_video.count(False)} of {len(in_video)} inputs of a batch have no 'video_id'."
                " Give every frame one, or none to run them as still images."
            )
        return [self._next_frame(inputs).output for inputs in batched_inputs]

    def _next_frame(self, inputs):
        stream = self.streams.get(inputs["video_id"], inputs.get("frame_index"))
        if self.learner is None:
            return self.step(inputs, stream)
        result = self.step(inputs, stream, learning=self.learner.wants_graph())
        learn(self.learner, self, [result])
        return result

    def init_state(self, num_streams=None, *, own_policies=False):
        """
        Args:
            num_streams (int or None): how many videos to run as one batch.
            own_policies (bool): give every stream a copy of the policy, to learn for itself.

        Returns:
            VideoStream or StreamBatch: what :meth:`step` takes; for a number of streams what
            :meth:`step_batch` takes.
        """
        policies = None
        if own_policies:
            policies = [copy.deepcopy(self.policy) for _ in range(num_streams or 1)]
        if num_streams is None:
            return VideoStream(policy=policies and policies[0])
        return StreamBatch(num_streams, policies=policies)

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
        return self.step_batch([inputs], stream, learning=learning, grid=grid)[0]

    @torch.no_grad()
    def step_batch(self, inputs, streams, *, learning=False, grid=None):
        """
        Run the next frame of several streams at once.

        Args:
            inputs (list[dict or None]): N of Detectron2's input dicts, one for every stream, with
                images of the same size; None for a stream that has no frame this time.
            streams (StreamBatch): of N streams, brought up to date by this call.
            learning (bool or list[bool]): keep the autograd graph of the policy, for an update;
                of each policy where every stream has its own.
            grid (BlockGrid): of N streams; execute these blocks instead of asking the policy.

        Returns:
            list[FrameResult or None]: of every stream.

        Raises:
            ValueError: if the number of inputs or the sizes of their images do not fit.
        """
        timer = StageTimer(self.device)
        present = [x is not None for x in inputs]
        with timer.stage("preprocess"):
            inputs = self._fill(inputs, streams)
            frame, image_size, canvas_size = self._preprocess([x["image"] for x in inputs])
            if streams.started and streams.canvas_size != canvas_size:
                log_first_n(
                    logging.WARNING,
                    f"The frames of a stream changed size from {streams.canvas_size} to"
                    f" {canvas_size} (padded): the stream starts anew.",
                )
                streams.reset()
            streams.image_size, streams.canvas_size = image_size, canvas_size
        observations, decisions = [None] * len(inputs), [None] * len(inputs)
        cut = torch.zeros(len(inputs), dtype=torch.bool, device=frame.device)
        if grid is None:
            with timer.stage("policy"):
                if streams.started:
                    if self.scene_cut:
                        cut = self._cuts(frame, streams)
                    observations, decisions = self._ask(frame, streams, learning)
                    grid = self._choose(decisions, frame, streams, cut, present)
                else:
                    grid = self._all_blocks(streams)
                    decisions = Decision(active=grid.active).split()
        sparse_modules = [m for m in self.base.modules() if isinstance(m, BlockSparseModule)]
        with (
            timer.stage("inference"),
            inference_autocast(self.device, self.amp),
            timed_modules(timer, "network", sparse_modules),
            block_sparse(self.base, grid, streams.features) as work,
        ):
            outputs = self.base(inputs)
        last_seen, was_broken = list(streams.outputs), streams.broken
        with timer.stage("observe"):
            self._update(streams, frame, outputs, grid, present)
        broken = streams.broken if was_broken is None else streams.broken | was_broken
        grids = _split(grid)
        return [
            FrameResult(
                output=outputs[n],
                frame=frame[n : n + 1],
                observation=observations[n],
                decision=decisions[n],
                grid=grids[n],
                age=streams.age[n : n + 1],
                work=work,
                detections=streams.outputs[n],
                previous_detections=last_seen[n],
                cut=cut[n],
                broken=broken[n],
                timer=timer,
            )
            if present[n]
            else None
            for n in range(len(inputs))
        ]

    @torch.no_grad()
    def information_gain(self, result):
        """
        Args:
            result (FrameResult): of a frame that is not the first of its stream.

        Returns:
            Tensor: float (1, GH, GW), eq. 1. NaN where the frame was not finite or follows a cut,
            which tells the learner to leave it out.
        """
        gain = self.task.block_gain(
            result.detections, result.previous_detections, result.grid.shape
        )
        return gain[None].masked_fill(result.broken | result.cut, torch.nan)

    def _fill(self, inputs, streams):
        """Stands in for the streams without a frame: the network runs whole batches."""
        images = [x["image"] for x in inputs if x is not None]
        sizes = sorted({tuple(image.shape[-2:]) for image in images})
        if len(inputs) != streams.num_streams or len(sizes) != 1:
            raise ValueError(
                f"{len(inputs)} inputs for {streams.num_streams} streams, with images of the sizes"
                f" {sizes}; expected an input or None for every stream, and images of one size."
                " Run streams of another size as a batch of their own."
            )
        idle = {"image": torch.zeros_like(images[0])}
        return [idle if x is None else x for x in inputs]

    def _preprocess(self, images):
        """Normalizes and pads as the wrapped model does, then resizes to policy resolution."""
        backbone, base = self.base.backbone, self.base
        images = [move_device_like(image, base.pixel_mean) for image in images]
        images = ImageList.from_tensors(
            [(image - base.pixel_mean) / base.pixel_std for image in images],
            backbone.size_divisibility,
            padding_constraints=backbone.padding_constraints,
        )
        canvas_size = tuple(images.tensor.shape[-2:])
        grid_shape = num_blocks(self.block_size, canvas_size)
        frame = resize_to_policy(images.tensor, grid_shape, self.task.pixels_per_block)
        return frame, images.image_sizes[0], canvas_size

    def _cuts(self, frame, streams):
        canvas = math.prod(num_blocks(self.block_size, streams.canvas_size)) * self.block_size**2
        return scene_cuts(
            frame,
            streams.frame,
            share=self.scene_cut,
            pixels_per_block=self.task.pixels_per_block,
            pixel_std=self.base.pixel_std,
            coverage=math.prod(streams.image_size) / canvas,
        )

    def _ask(self, frame, streams, learning):
        """
        Returns:
            tuple[list[Observation], list[Decision]]: of every stream, decided by its own policy or
            by the one they share.
        """
        observation = Observation(
            frame=frame.nan_to_num(),
            frame_state=streams.frame_state,
            output=streams.painted,
            grid=streams.active[:, None].float(),
            frame_index=streams.frame_index,
        )
        observations = observation.split()
        if not isinstance(learning, list):
            learning = [learning] * streams.num_streams
        if streams.policies is None:
            with torch.set_grad_enabled(any(learning)):
                return observations, self.policy(observation).split()
        decisions = []
        for n, policy in enumerate(streams.policies):
            with torch.set_grad_enabled(learning[n]):
                decisions.append(policy(observations[n]))
        return observations, decisions

    def _all_blocks(self, streams):
        return BlockGrid.full(
            block_size=self.block_size,
            image_size=streams.canvas_size,
            batch=streams.num_streams,
            device=self.device,
        )

    def _choose(self, decisions, frame, streams, cut, present):
        """BlockGrid: what the policies want, and what is executed whatever they want."""
        active = torch.cat([decision.active for decision in decisions])
        # Features that are not finite must go, and a frame that is not finite spoils every block.
        all_blocks = cut | streams.broken | ~_finite(frame) | (streams.frame_index == 0)
        active = active | all_blocks[:, None, None]
        if self.refresh_every:
            active = active | due_for_refresh(active, streams.age, self.refresh_every)
        if not all(present):
            active = active & streams.mask(present, active)
        return BlockGrid(active, block_size=self.block_size, image_size=streams.canvas_size)

    def _update(self, streams, frame, outputs, grid, present):
        seen = [
            self.task.observe(
                output,
                image_size=streams.image_size,
                canvas_size=streams.canvas_size,
                grid_shape=grid.shape,
            )
            for output in outputs
        ]
        painted = torch.stack([self.task.paint(x) for x in seen])
        streams.advance(
            frame=frame.nan_to_num(),
            painted=painted.nan_to_num(),
            seen=seen,
            active=grid.active,
            broken=~(_finite(frame) & _finite(painted)),
            present=present,
        )


def _split(grid):
    """list[BlockGrid]: of each stream."""
    if len(grid.active) == 1:
        return [grid]
    layout = {"block_size": grid.block_size, "image_size": grid.image_size}
    return [BlockGrid(active, **layout) for active in grid.active.split(1)]


def _finite(x):
    """bool (N,)"""
    return torch.isfinite(x).flatten(1).all(1)
