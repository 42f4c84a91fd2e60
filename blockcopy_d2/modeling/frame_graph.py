"""
The whole frame of a Faster or Mask R-CNN as one CUDA graph: image in, detections and information
gain out, the host only launches.

Shape shorthand in this module:

    GH, GW: rows and columns of the block grid
    h, w: policy resolution, P x P pixels per block
    K: classes
"""

import torch

from blockcopy_d2.policy import Decision, DetectionMasks, Observation
from blockcopy_d2.sparse import block_sparse, num_blocks

from .static_heads import FrameSizes, StaticRCNN
from .stream import VideoStream

__all__ = ["FrameGraph", "RecordedFunction"]

# What a StreamBatch keeps in tensors from one frame to the next.
_STATE = ("frame", "frame_state", "painted", "active", "age", "broken", "frame_index")


class RecordedFunction:
    """
    A function on tensors that stay where they are. On CUDA its third call is recorded as a graph,
    and from then on replayed: the first two let libraries choose, compile and allocate. Elsewhere
    it is just called.
    """

    _EAGER_CALLS = 2

    def __init__(self, function, device, generators=()):
        """
        Args:
            function (callable): without arguments or results; never makes the host wait.
            device (torch.device):
            generators (sequence[torch.Generator]): that it draws from.
        """
        self._function = function
        self._cuda = torch.device(device).type == "cuda"
        self._generators = generators
        self._calls = 0
        self._graph = None

    def __call__(self):
        self._calls += 1
        if not self._cuda:
            self._function()
        elif self._calls <= self._EAGER_CALLS:
            # Recording happens on a stream of its own, and so must what it builds on.
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._function()
            torch.cuda.current_stream().wait_stream(side)
        else:
            if self._graph is None:
                self._graph = torch.cuda.CUDAGraph()
                for generator in self._generators:
                    self._graph.register_generator_state(generator)
                with torch.cuda.graph(self._graph):
                    self._function()
            self._graph.replay()


class FrameGraph:
    """
    One stream of a :class:`BlockCopyVideoModel` around a Faster or Mask R-CNN, with the same
    results as its :meth:`step`. Policy, sampling, the block-sparse network, proposal selection,
    RoI heads, what the policy sees next and the information gain are one CUDA graph, whatever
    blocks are active; the learner's step is a second one behind it. The host waits only where
    :meth:`StaticDetections.to_instances` asks how many detections there are.

    The backbone and the RPN head may be of half precision; the policy stays in single.
    """

    def __init__(self, model, *, image_shape, output_size=None, learner=None):
        """
        Args:
            model (BlockCopyVideoModel): around a model that :func:`static_heads.supports` is true
                for; with the "triton" backend on CUDA.
            image_shape (tuple[int, int, int]): of the frames, (3, height, width), as in the
                "image" of Detectron2's input dicts.
            output_size (tuple[int, int] or None): of boxes and masks; that of the frames if None.
            learner (OnlineLearner or None): of the model's policy.
        """
        self.model, self.learner = model, learner
        self.heads = StaticRCNN(model.base)
        self.stream = VideoStream()
        device = model.device
        self.image = torch.zeros(image_shape, dtype=torch.uint8, device=device)
        image_size = tuple(image_shape[1:])
        canvas_size = tuple(self._images().tensor.shape[-2:])
        self.sizes = FrameSizes(
            image_size=image_size,
            canvas_size=canvas_size,
            output_size=tuple(output_size or image_size),
            grid_shape=num_blocks(model.block_size, canvas_size),
            pixels_per_block=model.task.pixels_per_block,
        )
        self.stream.image_size, self.stream.canvas_size = image_size, canvas_size
        generators = model.policy.generators(device)
        self._run = RecordedFunction(self._frame, device, generators)
        self._learn = {
            updates: RecordedFunction(lambda updates=updates: self._observe(updates), device)
            for updates in (False, True)
        }
        self._state = None
        self.detections = self.gain = self.executed = None

    @torch.no_grad()
    def step(self, image, *, restart=False):
        """
        Run the next frame.

        Args:
            image (Tensor): uint8, of ``image_shape``.
            restart (bool): it is the first of another video.

        Returns:
            StaticDetections: in memory that the next frame overwrites.
        """
        first = self._state is None
        if restart and not first:
            self._state["frame_index"].zero_()
        self.image.copy_(image, non_blocking=True)
        if first:
            self._frame()
            self._keep()
        else:
            self._run()
            if self.learner is not None and not restart:
                self._teach()
        return self.detections

    def _teach(self):
        frames = self.learner.frames
        self._learn[self.learner.wants_graph()]()
        # A replay counts on the device only.
        self.learner.frames = frames + 1

    def _images(self):
        return self.model.base.preprocess_image([{"image": self.image}])

    def _frame(self):
        model, stream, base = self.model, self.stream, self.model.base
        if self._state is not None:
            for name in _STATE:
                setattr(stream, name, self._state[name])
            stream.outputs = [DetectionMasks(*self._previous, self.sizes.pixels_per_block)]
        frame, _, _ = model._preprocess([self.image])
        cut = torch.zeros(1, dtype=torch.bool, device=frame.device)
        observation = decision = None
        if not stream.started:
            grid = model._all_blocks(stream)
        else:
            if model.scene_cut:
                cut = model._cuts(frame, stream)
            (observation,), (decision,) = model._ask(frame, stream, False)
            grid = model._choose([decision], frame, stream, cut, [True])
        dtype = next(base.backbone.parameters()).dtype
        with block_sparse(base, grid, stream.features):
            features = base.backbone(self._images().tensor.to(dtype))
            rpn = base.proposal_generator
            logits, deltas = rpn.rpn_head([features[name] for name in rpn.in_features])
        self.detections = self.heads(features, logits, deltas, self.sizes)
        previous, was_broken = stream.outputs[0], stream.broken
        model._update(stream, frame, [{"instances": self.detections}], grid, [True])
        self.executed = grid.active
        if self._state is None:
            return
        gain = model.task.block_gain(stream.outputs[0], previous, grid.shape)[None]
        self.gain = gain.masked_fill(was_broken | stream.broken | cut, torch.nan)
        if decision.logits is not None:
            self._remember_decision(observation, decision)
        for name in _STATE:
            self._state[name].copy_(getattr(stream, name))
        for kept, new in zip(self._previous, _tensors(stream.outputs[0]), strict=True):
            if kept is not None:
                kept.copy_(new)

    def _keep(self):
        """Gives the state of the first frame its place for good."""
        stream = self.stream
        self._state = {name: getattr(stream, name).clone() for name in _STATE}
        self._previous = [x if x is None else x.clone() for x in _tensors(stream.outputs[0])]
        maps = (stream.frame, stream.frame_state, stream.painted, stream.active[:, None].float())
        self._observation = [torch.zeros_like(x) for x in maps]
        self._drawn = torch.zeros_like(stream.active)
        self._logits = torch.zeros(stream.active.shape, device=stream.active.device)

    def _remember_decision(self, observation, decision):
        """For the learner, who comes when the state has moved on."""
        maps = (observation.frame, observation.frame_state, observation.output, observation.grid)
        for kept, new in zip(self._observation, maps, strict=True):
            kept.copy_(new)
        self._drawn.copy_(decision.active)
        self._logits.copy_(decision.logits)

    def _observe(self, updates):
        logits = self._logits
        if updates:
            with torch.enable_grad():
                logits = self.model.policy.network(Observation(*self._observation, frame_index=0))
        self.learner.observe(
            Decision(active=self._drawn, logits=logits), self.gain, executed=self.executed
        )


def _tensors(detections):
    return detections.masks, detections.scores, detections.classes, detections.boxes
