"""
Time of whole frames: from a uint8 image on the GPU to Instances with full-size masks, information
gain and the policy's updates included, against Detectron2 and the best dense model.

    python -m benchmarks.frame --dtype fp16

Runs the demo's Mask R-CNN, or other weights, on a StreetClips clip of 1024x2048, which it draws.
All variants run interleaved, clip by clip; times are the host's, from the image to results that
are ready. The best dense model has the second stage of BlockCopy and the fastest network of cuDNN
and of torch.compile in the modes that are asked for, see benchmarks/dense.py; --batch-sizes times
it for batches, too. Writes benchmarks/results/GPU_CONFIG_DTYPE.json, section "frame".
"""

import glob
import itertools
import os
import statistics
import tempfile

import cv2
import torch
from detectron2.modeling import build_model

from blockcopy_d2.config import base_config
from blockcopy_d2.data.streetclips.writer import write_split
from blockcopy_d2.engine.arguments import errors_end_the_program
from blockcopy_d2.engine.checkpoint import WeightsCheckpointer
from blockcopy_d2.engine.defaults import load_config
from blockcopy_d2.modeling import read_whole
from blockcopy_d2.modeling.running.captured_learning import CapturedLearning
from blockcopy_d2.modeling.running.steps import normalize
from blockcopy_d2.policy import Decision, Policy
from blockcopy_d2.resources import config_path
from blockcopy_d2.sparse import num_blocks

from .dense import BestDense
from .measure import (
    DTYPES,
    SHARES,
    add_batch_sizes,
    argument_parser,
    captured,
    clip_by_clip,
    environment,
    interleaved,
    prepare_gpu,
    results_path,
    write_results,
)

DEMO_CONFIG = "StreetClips/mask_rcnn_R_18_FPN.yaml"
DEMO_WEIGHTS = "blockcopy://maskrcnn_R_18_FPN_streetclips.pth"


def main():
    args = _parser().parse_args()
    prepare_gpu()
    dtype = DTYPES[args.dtype]
    images = read_clip(args.frames)
    options = ["MODEL.WEIGHTS", args.weights, "MODEL.BLOCKCOPY.ENABLED", True]
    options += ["MODEL.BLOCKCOPY.BLOCK_SIZE", args.block_size, "MODEL.BLOCKCOPY.TARGET", 0.3]
    cfg = load_config(config_path(args.config_file), [*args.opts, *options])
    with torch.no_grad():
        blockcopy = BlockCopy(cfg, images, dtype)
        peak_memory = torch.cuda.max_memory_allocated()
        model = build_model(base_config(cfg)).eval()
        WeightsCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        dense = BestDense(model, images[:1], dtype, modes=args.compile_modes)
        # A copy, since a policy that is overruled learns from blocks it did not choose.
        own = BlockCopy(cfg, images, dtype)
        variants = {"stock": stock(model, images)}
        variants["best_dense"] = lambda: sum(len(dense([image])[0]) for image in images)
        variants["stock_amp"] = stock(model, images, autocast=torch.float16)
        for share in SHARES:
            variants[str(share)] = lambda share=share: blockcopy.clip(share)
        variants["policy"] = lambda: own.clip(None)
        times, counts = clip_by_clip(variants, len(images), rounds=args.rounds)
        stages = own.stages()
        # Measured last, since repeated updates change the policy.
        dense_parts = {"second_stage": dense.heads, "network": dense.network}
        parts = interleaved({**own.parts(), **dense_parts})
        best_dense = {
            "network_ms": parts["network"]["median"],
            "frame_ms": times["best_dense"]["median"],
            "how": dense.how,
        }
        batches = {}
        for number in args.batch_sizes:
            batch = list(itertools.islice(itertools.cycle(images), number))
            rival = BestDense(model, batch, dtype, modes=args.compile_modes)
            batches[number] = rival.measure(batch)
    medians = {str(share): times[str(share)]["median"] for share in SHARES}
    stock_ms, dense_ms = times["stock"]["median"], best_dense["frame_ms"]
    results = {
        "shared": {
            **environment(),
            "dtype": args.dtype,
            "frame_config": args.config_file,
            "policy_ms": parts["policy"]["median"],
            "update_ms": parts["update"]["median"],
            "peak_memory_mb": round(peak_memory / 1e6),
        },
        "size": list(images[0].shape[1:]),
        "block_size": args.block_size,
        "stock_ms": stock_ms,
        "stock_fp16_autocast_ms": times["stock_amp"]["median"],
        "best_dense": best_dense,
        "best_dense_batches": batches,
        "blockcopy_ms": medians,
        "learned_policy_ms": times["policy"]["median"],
        "learned_policy_executed": round(torch.cat(own.decided).float().mean().item(), 4),
        "speedup_against_stock": {s: round(stock_ms / t, 2) for s, t in medians.items()},
        "speedup_against_best_dense": {s: round(dense_ms / t, 2) for s, t in medians.items()},
        "detections": {name: round(count, 1) for name, count in counts.items()},
        "stages_ms": {**stages, "second_stage": parts["second_stage"]["median"]},
        "cache_mb": round(blockcopy.stream.features.nbytes / 1e6),
        "quartiles_ms": times,
    }
    path = results_path(args.name, args.dtype)
    write_results(path, "frame", results)
    for name, time_ in times.items():
        print(
            f"{name:>12} {time_['median']:8.3f} ms   {stock_ms / time_['median']:5.2f} x stock  "
            f" {dense_ms / time_['median']:5.2f} x best dense   {counts[name]:5.1f} detections"
        )
    print(f"best dense: {best_dense}; batches: {batches}")
    print({**{name: part["median"] for name, part in parts.items()}, **stages})
    print(f"results in {path}")


def stock(model, images, autocast=None):
    """Detectron2's model as users run it."""

    def clip():
        count = 0
        for image in images:
            height, width = image.shape[1:]
            with torch.autocast("cuda", autocast, enabled=autocast is not None):
                outputs = model([{"image": image, "height": height, "width": width}])
            count += len(outputs[0]["instances"])
        return count

    return clip


class BlockCopy:
    """
    A stream as users run it, its blocks chosen by the policy or overruled.

    Attributes:
        decided (list[Tensor]): bool (1, GH, GW), the policy's choices on its last clip.
    """

    def __init__(self, cfg, images, dtype):
        self.images = images
        self.model = model = build_model(cfg)
        WeightsCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        self.policy = model.policy = Overruled(model.policy)
        self.learner = self.policy.learner_class(cfg, self.policy)
        model.backbone.to(dtype)
        model.proposal_generator.rpn_head.to(dtype)
        self.stream = model.init_state()
        canvas = tuple(normalize(model, images[:1]).tensor.shape[-2:])
        shape = num_blocks(model.block_size, canvas)
        self.policy.chosen = torch.ones(1, *shape, dtype=torch.bool, device="cuda")
        self.policy.obeyed = torch.ones(1, dtype=torch.bool, device="cuda")
        generator = torch.Generator().manual_seed(1)
        order = torch.rand(shape[0] * shape[1], generator=generator).argsort().argsort()
        self.blocks = {
            share: (order < max(round(share * len(order)), 1)).view(1, *shape).cuda()
            for share in SHARES
        }
        self.clip(None)
        if self.stream.graph is None:
            raise SystemExit(f"{type(model.base).__name__} does not run as a CUDA graph here.")

    def frame(self, image):
        height, width = image.shape[1:]
        inputs = {"image": image, "height": height, "width": width}
        return self.model.step(inputs, self.stream, learner=self.learner)

    def clip(self, share):
        """Runs the frames as the continuation of the stream; the policy's own blocks for None."""
        self.policy.obeyed.fill_(share is None)
        if share is not None:
            self.policy.chosen.copy_(self.blocks[share])
        if share is None:
            self.decided = []
        count = 0
        for image in self.images:
            result = self.frame(image)
            read_whole(result)
            count += len(result["instances"])
            if share is None:
                self.decided.append(result.grid.active.clone())
        return count

    def parts(self):
        """dict[str, callable]: the policy as a graph of its own, and the learner's update."""
        model, learner, result = self.model, self.learner, self.frame(self.images[0])
        observation = result.observation
        lesson = CapturedLearning(learner, model.policy, pool=torch.cuda.graph_pool_handle())

        def update():
            learner.frames = learner.update_every - 1
            lesson(model, self.stream.graph.memory, result.timer)

        for _ in range(3):
            update()
        generators = model.policy.generators(model.device)
        return {
            "policy": captured(lambda: model.policy(observation), generators=generators),
            "update": update,
        }

    def stages(self):
        """dict[str, float]: milliseconds of the stages of a frame, medians over a clip."""
        return stage_medians(self.frame, self.images)


class Overruled(Policy):
    """A learned policy that is asked; tensors on the device say whether its blocks are used."""

    learns = True
    capturable = True

    def __init__(self, policy):
        super().__init__()
        self.policy = policy
        self.network = policy.network
        self.wants_gain, self.learner_class = policy.wants_gain, policy.learner_class
        self.chosen = self.obeyed = None

    @property
    def target(self):
        """float: the policy's target, for a learner that passes it on."""
        return self.policy.target

    @target.setter
    def target(self, value):
        self.policy.target = value

    def generators(self, device):
        return self.policy.generators(device)

    def forward(self, observation):
        decision = self.policy(observation)
        active = torch.where(self.obeyed, decision.active, self.chosen)
        return Decision(active=active, logits=decision.logits)


def stage_medians(run_frame, images):
    """
    Args:
        run_frame (callable): runs a frame of a stream, and returns its FrameResult.
        images (list[Tensor]): frames.

    Returns:
        dict[str, float]: milliseconds of each stage, medians over the frames; a frame without a
        stage counts as 0.
    """
    seconds = []
    for image in images:
        result = run_frame(image)
        read_whole(result)
        seconds.append(result.seconds)
    return {
        name: round(1000 * statistics.median(x.get(name, 0.0) for x in seconds), 4)
        for name in seconds[0]
    }


def read_clip(folder, size=None, *, device="cuda"):
    """
    Args:
        folder (str or None): a folder of pictures of one size; None for a StreetClips clip of
            1024x2048.
        size (tuple[int, int] or None): height and width that they are scaled to.
        device (str or torch.device): device of the pictures.

    Returns:
        list[Tensor]: uint8 (3, H, W) in BGR order, 20 of them at most.
    """
    with tempfile.TemporaryDirectory() as temporary:
        if folder is None:
            workers = min(os.cpu_count() or 1, 16)
            write_split(temporary, "val", num_clips=1, height=1024, width=2048, workers=workers)
            folder = temporary
        pattern = os.path.join(folder, "**", "*_leftImg8bit.png")
        files = sorted(
            f for f in glob.glob(pattern, recursive=True) if "leftImg8bit_sequence" in f
        ) or sorted(glob.glob(os.path.join(folder, "*")))
        pictures = [cv2.imread(file) for file in files[:20]]
    if not pictures or any(picture is None for picture in pictures):
        raise SystemExit(f"--frames {folder}: expected a folder of pictures of one size.")
    if size is not None:
        pictures = [cv2.resize(picture, size[::-1]) for picture in pictures]
    return [torch.from_numpy(x.transpose(2, 0, 1).copy()).to(device) for x in pictures]


def _parser():
    parser = argument_parser(
        "frame",
        __doc__,
        config=DEMO_CONFIG,
        name="maskrcnn_R18_FPN",
        rounds=10,
    )
    parser.add_argument(
        "--weights",
        default=DEMO_WEIGHTS,
        metavar="FILE",
        help="weights of the model (%(default)s)",
    )
    add_batch_sizes(parser)
    return parser


if __name__ == "__main__":
    with errors_end_the_program():
        main()
