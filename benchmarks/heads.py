"""
Time of whole frames of Detectron2's architectures, and what heads of fixed shape save: with them a
frame is one CUDA graph, without them it runs operator by operator.

    python -m benchmarks.heads --dtype fp16
    python -m benchmarks.heads --models fcos --device cpu --dtype fp32 --size 128 256 --rounds 2

Weights are random. Score thresholds are chosen so that Detectron2 finds about 50 objects in a frame
of a StreetClips clip of 1024x2048, which is drawn; a PanopticFPN merges all of them. BlockCopy
runs as `accelerate` sets it up: with motion, and with the policy "ExpectedGain" that executes 0.3
of the blocks and learns. Everything of a result is read. All variants run interleaved, clip by
clip; times are the host's, per frame:

    stock          Detectron2's model, under autocast for fp16
    dense_graph    all of it in one CUDA graph, by the same heads, see benchmarks/dense.py
    operators      BlockCopy operator by operator
    graph          BlockCopy as CUDA graphs
    unmerged       the same where "panoptic_seg" is not read, of a PanopticFPN

Writes benchmarks/results/DEVICE_heads_DTYPE.json, a section for each architecture; "dense" says how
the dense network ran. Kernels are compiled at their first use. --compile-only fills the caches of
compilers and times nothing, so processes for one model each can do that side by side.
"""

import argparse
import copy
import time

import torch
from detectron2 import model_zoo
from detectron2.config import instantiate
from detectron2.modeling import ProposalNetwork, build_model
from detectron2.modeling.meta_arch.dense_detector import DenseDetector

import blockcopy_d2
from blockcopy_d2.config import base_config
from blockcopy_d2.engine.arguments import errors_end_the_program, positive
from blockcopy_d2.engine.defaults import load_config
from blockcopy_d2.modeling import read_whole
from blockcopy_d2.resources import config_path

from .dense import BestDense
from .frame import read_clip, stage_medians
from .measure import (
    COMPILE_MODES,
    DTYPES,
    add_size,
    clip_by_clip,
    environment,
    results_path,
    write_results,
)
from .network import give_statistics

MODELS = {
    "retinanet": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "fcos": "COCO-Detection/fcos_R_50_FPN_1x.py",
    "cascade": "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    "panoptic": "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
    "mgan": "CityPersons/mgan_VGG_16.yaml",
    "keypoints": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
    "c4": "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
    "proposals": "COCO-Detection/rpn_R_50_FPN_1x.yaml",
    "maskrcnn": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
}
TARGET, WANTED_DETECTIONS = 0.3, 50
_DTYPES = {**DTYPES, "fp32": torch.float32}


def main():
    args = _parser().parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("Found no NVIDIA GPU. On a CPU: --device cpu --dtype fp32")
    if args.device == "cpu" and args.dtype != "fp32":
        raise SystemExit(f"--dtype {args.dtype} is for GPUs. On a CPU: --dtype fp32")
    torch.backends.cudnn.benchmark = True
    tf32 = args.dtype != "fp32"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    images = read_clip(args.frames, tuple(args.size), device=args.device)[: args.length]
    path = results_path("heads", args.dtype, args.device)
    for name in args.models:
        progress = _Progress(name)
        model = build(MODELS[name], args.device)
        progress("built")
        measured = measure(model, images, args, progress)
        if measured is None:
            continue
        results = {"config": MODELS[name], **measured}
        shared = {**environment(args.device), "dtype": args.dtype, "size": list(args.size)}
        write_results(path, name, {"shared": shared, **results})
        for variant, quartiles in results["quartiles_ms"].items():
            count = results["detections"][variant]
            how = f"   {results['dense']['how']}" if variant == "dense_graph" else ""
            print(f"{variant:>12} {quartiles['median']:8.3f} ms   {count:5.1f} detections{how}")
        print(f"{'stages':>12} {results['stages_ms']}, executed {results['executed']}", flush=True)
    if not args.compile_only:
        print(f"results in {path}")


class _Progress:
    """Prints what is done, and the seconds since the last."""

    def __init__(self, name):
        self._name, self._last = name, time.perf_counter()

    def __call__(self, done):
        now = time.perf_counter()
        print(f"{self._name}: {done} ({now - self._last:.1f} s)", flush=True)
        self._last = now


@torch.no_grad()
def measure(base, images, args, progress=lambda done: None):
    """
    Args:
        base (nn.Module): a meta-architecture of Detectron2.
        images (list[Tensor]): uint8 (3, H, W), a clip.
        args: arguments of the program.
        progress (callable): called with a word on everything that is done.

    Returns:
        dict or None: times of all variants, in milliseconds per frame; None if nothing is to be
        timed.
    """
    dtype = _DTYPES[args.dtype]
    is_half = dtype in (torch.float16, torch.bfloat16)
    found = calibrate(base, images[0])
    progress(f"thresholds set, {found} detections")
    videos = {}
    for name in ("operators", "graph"):
        videos[name] = Video(copy.deepcopy(base), images, cuda_graph=name == "graph", amp=is_half)
        progress(f"{name} ran")
    if args.device == "cuda" and videos["graph"].stream.graph is None:
        raise SystemExit(f"{type(base).__name__} does not run as a CUDA graph here.")
    variants = {
        "stock": lambda: sum(map(len, stock(base, images, dtype if is_half else None))),
        "operators": _without_tuning(videos["operators"].clip),
        "graph": videos["graph"].clip,
    }
    if hasattr(base, "sem_seg_head"):
        variants["unmerged"] = lambda: videos["graph"].clip(merged=False)
    if args.device == "cuda":
        dense = BestDense(base, images[:1], dtype, modes=args.compile_modes)
        variants["dense_graph"] = lambda: sum(_count(dense([image])) for image in images)
        progress("dense network ready")
    if args.compile_only:
        for clip in variants.values():
            clip()
        progress("all variants ran")
        return None
    times, counts = clip_by_clip(variants, len(images), rounds=args.rounds, device=args.device)
    progress("timed")
    rival = {}
    if args.device == "cuda":
        rival = {"dense": {"how": dense.how, "network_ms": dense.network_ms}}
    return {
        **rival,
        **{f"{name}_ms": time["median"] for name, time in times.items()},
        "detections": {name: round(count, 1) for name, count in counts.items()},
        "executed": round(videos["graph"].executed, 4),
        "stages_ms": videos["graph"].stages(),
        "quartiles_ms": times,
    }


def _without_tuning(function):
    """A frame's number of masks differs: cuDNN would try its algorithms in the middle of a clip."""

    def untuned():
        with torch.backends.cudnn.flags(benchmark=False):
            return function()

    return untuned


def build(config, device):
    """
    Args:
        config (str): a config of the model zoo or of this package.
        device (str):

    Returns:
        nn.Module: its model with random weights, in eval mode, of inputs near unit variance.
    """
    torch.manual_seed(0)
    path = config_path(config)
    if config.endswith(".py"):
        node = model_zoo.get_config(config).model
        node.pixel_std = [58.0] * 3
        model = instantiate(node).to(device)
    else:
        opts = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", device, "MODEL.PIXEL_STD", [58.0] * 3]
        model = build_model(base_config(load_config(path, opts)))
    give_statistics(model)
    return model.eval().requires_grad_(False)


def calibrate(model, image):
    """
    Set the score threshold of a model so that it finds WANTED_DETECTIONS in a picture, and merges
    all of them into a segmentation.

    Args:
        model (nn.Module): see :func:`measure`.
        image (Tensor): uint8 (3, H, W).

    Returns:
        int: the number of its detections.
    """
    if isinstance(model, DenseDetector):
        # With random weights scores would all be 1, and boxes as large as the picture.
        features = model.backbone(model.preprocess_image([{"image": image}]).tensor)
        logits, deltas, *_ = model.head([features[name] for name in model.head_in_features])
        model.head.cls_score.weight.div_(max(x.std() for x in logits))
        model.head.bbox_pred.weight.div_(max(x.std() for x in deltas))
    if not isinstance(model, ProposalNetwork):
        # Detections do not suppress those of higher scores: a threshold only cuts their list. Equal
        # scores stay together.
        _set_threshold(model, 0.0)
        (found,) = stock(model, [image], None)
        scores = found.scores.sort(descending=True).values
        lower = scores[scores < scores[:WANTED_DETECTIONS][-1]]
        _set_threshold(model, lower[0].item() if len(lower) else 0.0)
    (found,) = stock(model, [image], None)
    return len(found)


def _set_threshold(model, value):
    if not hasattr(model, "roi_heads"):
        model.test_score_thresh = value
        return
    if hasattr(model, "combine_instances_score_thresh"):
        model.combine_instances_score_thresh = value
    predictors = model.roi_heads.box_predictor
    for predictor in predictors if isinstance(predictors, torch.nn.ModuleList) else [predictors]:
        predictor.test_score_thresh = value


def stock(model, images, autocast):
    """list[Instances]: Detectron2's detections, or proposals, for each of the images."""
    results = []
    for image in images:
        with torch.autocast(image.device.type, autocast, enabled=autocast is not None):
            (output,) = model([{"image": image, "height": image.shape[1], "width": image.shape[2]}])
        results.append(_detections(output))
    return results


def _detections(output):
    return output["proposals" if "proposals" in output else "instances"]


def _count(result):
    """int: detections of a result of BestDense, which may come after a segmentation."""
    instances = result[1] if isinstance(result, tuple) else result
    return sum(map(len, instances))


class Video:
    """A stream of an accelerated model, as users run it. Clips are its continuation."""

    def __init__(self, base, images, *, cuda_graph, amp):
        options = {"cuda_graph": cuda_graph, "amp": amp}
        self.model = blockcopy_d2.accelerate(base, target=TARGET, **options)
        self.stream = self.model.init_state()
        self.images, self._active = images, []
        for image in images[:3]:
            self.frame(image)

    def frame(self, image):
        inputs = {"image": image, "height": image.shape[1], "width": image.shape[2]}
        return self.model.step(inputs, self.stream, learner=self.model.learner)

    def clip(self, merged=True):
        """int: number of detections. Merged: all of the outputs is read, "panoptic_seg" too."""
        count, self._active = 0, []
        for image in self.images:
            result = self.frame(image)
            read_whole(result if merged else {"instances": result["instances"]})
            count += len(_detections(result))
            self._active.append(result.grid.active)
        return count

    @property
    def executed(self):
        """float: share of the blocks that the last clip executed."""
        return torch.cat(self._active).float().mean().item()

    def stages(self):
        """dict[str, float]: milliseconds of the stages of a frame, medians over a clip."""
        return stage_medians(self.frame, self.images)


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.heads",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--models",
        nargs="+",
        choices=MODELS,
        default=list(MODELS),
        metavar="NAME",
        help=f"models to time: {', '.join(MODELS)} (all)",
    )
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="device to run on (%(default)s)"
    )
    parser.add_argument(
        "--dtype", choices=_DTYPES, default="fp16", help="precision of the network (%(default)s)"
    )
    parser.add_argument("--frames", metavar="DIR", help="a clip's pictures; drawn if left out")
    parser.add_argument(
        "--length", type=positive, default=8, help="frames of the clip (%(default)s)"
    )
    parser.add_argument(
        "--rounds", type=positive, default=5, help="measurements of each (%(default)s)"
    )
    parser.add_argument(
        "--compile-modes",
        nargs="*",
        choices=COMPILE_MODES,
        default=[],
        metavar="MODE",
        help="modes of torch.compile to try for dense_graph; none leaves cuDNN (none)",
    )
    parser.add_argument(
        "--compile-only",
        action="store_true",
        help="run every variant once, to fill the caches of compilers; time and write nothing",
    )
    add_size(parser, 1024, 2048)
    return parser


if __name__ == "__main__":
    with errors_end_the_program():
        main()
