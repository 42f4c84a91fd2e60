"""
The video model: any Detectron2 meta-architecture, run block by block.

Shape shorthand in this module:

    N: streams of a batch
    B: side of a block in pixels of the network's input
    GH, GW: rows and columns of the block grid, ceil(H / B) x ceil(W / B), H x W being the size of
        the network's input, padding included
"""

import copy
import functools
import inspect
import warnings
from dataclasses import asdict, replace

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY

from blockcopy_d2.config import check_arguments, check_blockcopy_config
from blockcopy_d2.config_key import flag, whole
from blockcopy_d2.kernels.device import on_device
from blockcopy_d2.motion import CacheMover, build_motion
from blockcopy_d2.policy import AllBlocks, build_policy
from blockcopy_d2.sparse import WeightsWatch, make_writable
from blockcopy_d2.sparse.grid import check_stride
from blockcopy_d2.sparse.proxy import ModuleProxy

from .conversion import check_compiled_operators, convert_model
from .running import (
    FrameGraph,
    FrameLock,
    StreamBatch,
    StreamPool,
    VideoOptions,
    VideoStream,
    inference_autocast,
    run_and_learn,
    run_next_frame,
    run_videos,
    stream_bytes,
)
from .running.inputs import check_list
from .tasks import build_task

__all__ = ["BlockCopyVideoModel"]


@META_ARCH_REGISTRY.register()
class BlockCopyVideoModel(ModuleProxy):
    """
    Runs a Detectron2 model on video: a policy picks the blocks of a frame worth executing, the
    block-sparse modules of the model compute those and keep their features elsewhere (section 3
    of the paper).

    Inputs and outputs are Detectron2's. Inputs that carry a "video_id" belong to a stream; any
    number of streams may be interleaved, and a stream starts with a new id or with a
    "frame_index" of 0. Inputs without a "video_id" run densely and without state, as in the wrapped
    model. :meth:`step` and :meth:`step_batch` do the same with state that the caller holds. Where
    possible, the frames of a stream are CUDA graphs, see :class:`FrameGraph`.

    The weights of the task network are frozen and it stays in inference mode. Its state dict is
    that of the wrapped model, plus the policy's under "policy.". Weights may be changed between
    frames, in any way that :class:`WeightsWatch` notices, and so may their device and precision:
    the next frame of every stream then executes all blocks. So does the next one after an
    exception or an interrupt within a frame.

    Any number of threads may use one model. Their frames take turns; still images do not wait for
    them. On CUDA all threads have to use the same CUDA stream, which is PyTorch's default.

    All other attributes of the wrapped model are available: ``model.preprocess_image(...)``,
    ``model.roi_heads``, ``model.test_score_thresh = 0.3``; and ``isinstance`` treats this as an
    instance of its class. Its methods run densely, without state. The exception is
    ``model.inference(inputs)`` of frames with a "video_id" and no other option, which is
    :meth:`forward`, as in Detectron2.

    Attributes:
        options (VideoOptions): how frames are run.
        lock (FrameLock): held during every frame. Hold it for longer to keep other threads out, for
            example from a frame until the policy has learned from it.
        learner (OnlineLearner or None): teaches the policy on every frame given to :meth:`forward`.
            None until it is set.
    """

    @configurable
    def __init__(self, *, base, policy, task, max_streams, motion=None, **options):
        """
        Args:
            base (nn.Module): a Detectron2 meta-architecture with block-sparse modules, see
                :func:`convert_model`. Its backbone defines the padding; its ``pixel_mean`` and
                ``pixel_std`` the normalization of the policy's input.
            policy (Policy): picks the blocks.
            task (Task): turns an output into the policy's input, and compares two outputs.
            max_streams (int): number of streams whose features are kept.
            motion (MotionEstimator or None): moves the features and history of a stream with the
                picture, see :class:`CacheMover`. None: they stay in place.
            options: those of :class:`VideoOptions`. They can be read and set as attributes of the
                model, from one frame to the next.

        Raises:
            ValueError: an argument is out of its range, or blocks do not align with a feature map
                of the backbone or with the cells of the motion.
        """
        super().__init__()
        check_arguments(max_streams=max_streams)
        self.policy = policy
        self.task = task
        self.motion = motion
        self.options = VideoOptions(**options)
        self.streams = StreamPool(max_streams)
        self.learner = None
        self.lock = FrameLock()
        self._cache_mover = None
        for shape in base.backbone.output_shape().values():
            check_stride(self.options.block_size, shape.stride)
        if motion is not None and self.options.block_size % motion.cell_size:
            raise ValueError(
                f"Cells of {motion.cell_size} pixels do not fit blocks of"
                f" {self.options.block_size}: lower MODEL.BLOCKCOPY.MOTION.CELL_SIZE."
            )
        self._weights = WeightsWatch(base)
        self._wrap(base.eval().requires_grad_(False))
        make_writable(self)
        self.eval()

    @classmethod
    def from_config(cls, cfg):
        options = cfg.MODEL.BLOCKCOPY
        base_cfg = cfg.clone()
        base_cfg.defrost()
        base_cfg.MODEL.META_ARCHITECTURE = options.BASE_META_ARCHITECTURE
        base = META_ARCH_REGISTRY.get(options.BASE_META_ARCHITECTURE)(base_cfg)
        return {"base": base, **cls.parts(cfg, base)}

    @classmethod
    def parts(cls, cfg, base):
        """
        Make a meta-architecture block-sparse, and build the other parts of its video model.

        Args:
            cfg (CfgNode): config of the video model. Keys of the meta-architecture are not read.
            base (nn.Module): the meta-architecture, changed in place.

        Returns:
            dict: the arguments of this class besides ``base``. A model that cannot run in blocks
            gets a policy that executes all of them, and no motion.

        Raises:
            ValueError: a key has a value that it does not take, which is named; or the outputs of
                the meta-architecture have an unknown kind.
            ImportError: the meta-architecture needs operators that this installation lacks.
        """
        check_blockcopy_config(cfg)
        check_compiled_operators(base)
        options = cfg.MODEL.BLOCKCOPY
        task = build_task(cfg, base)
        if convert_model(base, options.BACKEND):
            policy = build_policy(cfg, num_classes=task.num_classes)
            motion = build_motion(cfg)
        else:
            policy, motion = AllBlocks(), None
        return {
            "policy": policy,
            "task": task,
            "max_streams": options.MAX_STREAMS,
            "motion": motion,
            **asdict(VideoOptions.from_config(cfg)),
        }

    @property
    def base(self):
        """nn.Module: the wrapped meta-architecture."""
        return self._wrapped

    @property
    def cache_mover(self):
        """CacheMover or None: None without motion."""
        if self.motion is None:
            return None
        maps = self.options.moved_maps
        if maps == "auto":
            # A GPU moves all of them in a millisecond or two, see docs/motion.md.
            maps = "all" if self.device.type == "cuda" else self.task.moved_maps
        settings = {
            "cell_size": self.motion.cell_size,
            "maps": maps,
            "min_stride": self.options.min_moved_stride,
            "max_stride": self.options.max_moved_stride,
        }
        mover = self._cache_mover
        if mover is None or any(getattr(mover, name) != x for name, x in settings.items()):
            mover = self._cache_mover = CacheMover(**settings)
        return mover

    @property
    def device(self):
        return self.base.pixel_mean.device

    @property
    def channels(self):
        """int: number of channels of an image."""
        return self.base.pixel_mean.numel()

    @property
    def __class__(self):
        # isinstance() looks at this besides the type, so that code that expects a GeneralizedRCNN,
        # such as GeneralizedRCNNWithTTA, accepts a wrapped one.
        return type(self.__dict__.get("_wrapped", self))

    def _get_name(self):
        return type(self).__name__

    def __reduce_ex__(self, protocol):
        # Streams and their graphs belong to this model in this process.
        state = {**self.__dict__, "streams": StreamPool(self.streams.max_streams)}
        state["_cache_mover"] = None
        # Pickle's own way would compare __class__ with the type.
        return _without_init, (type(self),), state

    def _wrapped_value(self, name, value):
        """Methods of the wrapped model run in the model's precision."""
        if not inspect.ismethod(value) or value.__self__ is not self.base:
            return value

        @functools.wraps(value)
        def method(*args, **kwargs):
            if name == "inference" and (inputs := _frames_of_streams(value, args, kwargs)):
                return self(inputs)
            with inference_autocast(self.device, self.amp):
                return value(*args, **kwargs)

        return method

    def _wrapped_changed(self):
        self._weights.forget()

    @property
    def weights_version(self):
        """int: number that stands for the current weights of the task network."""
        self._weights.changed()
        return self._weights.version

    def train(self, mode=True):
        """Does nothing: the task network is frozen and the policy keeps its own mode."""
        return super().train(False)

    def forward(self, batched_inputs):
        """
        Args:
            batched_inputs (list[dict]): inputs of the wrapped model, with "video_id" (str) and
                "frame_index" (int) in every dict, or in none.

        Returns:
            list[dict]: outputs of the wrapped model.

        Raises:
            TypeError: the inputs are not a list of dicts.
            ValueError: there are none, only some have a "video_id", or an image has another shape
                or type of numbers.
        """
        check_list(batched_inputs)
        in_video = ["video_id" in x for x in batched_inputs]
        if not any(in_video):
            with inference_autocast(self.device, self.amp):
                return self.base(batched_inputs)
        if not all(in_video):
            raise ValueError(
                f"{in_video.count(False)} of {len(in_video)} inputs of a batch have no 'video_id'."
                " Give every frame one, or none to run them as still images."
            )
        return [result.output for result in run_videos(self, batched_inputs)]

    @torch.inference_mode(False)
    def init_state(self, num_streams=None, *, own_policies=False):
        """
        Args:
            num_streams (int or None): number of videos to run as one batch.
            own_policies (bool): give every stream its own copy of the policy to learn.

        Returns:
            VideoStream or StreamBatch: state for :meth:`step`; with a number of streams, for
            :meth:`step_batch`.
        """
        if num_streams is not None:
            num_streams = whole(1, least=1).check("num_streams", num_streams)
        policies = None
        if flag(False).check("own_policies", own_policies):
            policies = [copy.deepcopy(self.policy) for _ in range(num_streams or 1)]
        if num_streams is None:
            return VideoStream(policy=policies and policies[0])
        return StreamBatch(num_streams, policies=policies)

    def memory_per_stream(self, inputs):
        """
        Measures the memory of a stream beforehand, by running the first frame of one.

        Args:
            inputs (dict): one of Detectron2's input dicts, such as with a black image.

        Returns:
            int: approximate bytes. A batch of N streams takes at most N times that.
        """
        return stream_bytes(self, inputs)

    def replays(self, stream):
        """Deprecated: the result of a frame reports its costs, see :class:`FrameResult`."""
        warnings.warn(
            "BlockCopyVideoModel.replays() is deprecated: results of frames have their costs,"
            " however they were run.",
            DeprecationWarning,
            stacklevel=2,
        )
        return FrameGraph.of(self, stream) is not None

    def step(self, inputs, stream, *, learner=None, learning=False, grid=None):
        """
        Run the next frame of a stream.

        Args:
            inputs (dict): one of Detectron2's input dicts.
            stream (VideoStream): updated by this call.
            learner, learning, grid: see :meth:`step_batch`.

        Returns:
            FrameResult: the result. With CUDA graphs, the next frame overwrites parts of it, see
            :class:`CapturedFrameResult`.
        """
        options = {"learner": learner, "learning": learning, "grid": grid}
        return self.step_batch([inputs], stream, **options)[0]

    def step_batch(self, inputs, streams, *, learner=None, learning=False, grid=None):
        """
        Run the next frame of several streams at once.

        Args:
            inputs (list[dict or None]): N of Detectron2's input dicts, one for every stream, with
                images of the same size; None for a stream without a frame this time.
            streams (StreamBatch): N streams, whose state this call advances.
            learner (OnlineLearner or list[OnlineLearner or None] or None): teaches the policy from
                the results of its decisions, see :func:`learn`. One for every policy if every
                stream has its own. None: nothing is learned.
            learning (bool or list[bool]): keep the autograd graph of the policy, for an update by
                the caller; one flag for each policy if every stream has its own.
            grid (BlockGrid): blocks of N streams to execute instead of asking the policy.

        Returns:
            list[FrameResult or None]: one for every stream.

        Raises:
            ValueError: the number of inputs or learners, or the sizes of images do not fit.
        """
        for wanted in learning if isinstance(learning, list) else (learning,):
            flag(False).check("learning", wanted)
        if learner is None:
            return run_next_frame(self, inputs, streams, learning=learning, grid=grid)
        return run_and_learn(self, inputs, streams, learner, grid=grid)

    @torch.inference_mode(False)
    @torch.no_grad()
    def information_gain(self, result):
        """
        Args:
            result (FrameResult): result of a frame that is not the first of its stream.

        Returns:
            Tensor: float (1, GH, GW), eq. 1. NaN where the frame was not finite or follows a cut,
            so that the learner leaves it out.
        """
        with on_device(self.device):
            gain = self.task.block_gain(
                result.detections, result.previous_detections, result.grid.shape
            )
        return gain[None].masked_fill(result.broken | result.cut, torch.nan)


def _option(name):
    def read(self):
        return getattr(self.options, name)

    def write(self, value):
        self.options = replace(self.options, **{name: value})

    return property(read, write, doc=f"See :class:`VideoOptions`: {name}.")


for _name in VideoOptions.keys():
    setattr(BlockCopyVideoModel, _name, _option(_name))


def _frames_of_streams(inference, args, kwargs):
    """Returns the inputs of a call that could be forward(), if they belong to streams."""
    parameters = inspect.signature(inference).parameters
    call = inspect.signature(inference).bind(*args, **kwargs)
    (_, inputs), *options = call.arguments.items() or [(None, None)]
    if any(value is not parameters[name].default for name, value in options):
        return None
    in_video = isinstance(inputs, (list, tuple)) and any(
        isinstance(x, dict) and "video_id" in x for x in inputs
    )
    return inputs if in_video else None


def _without_init(cls):
    return cls.__new__(cls)
