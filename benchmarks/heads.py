"""
Time of whole frames of Detectron2's architectures, and what heads of fixed shape save: with them a
frame is one CUDA graph, without them it runs operator by operator.

    python -m benchmarks.heads --dtype fp16
    python -m benchmarks.heads --models fcos --device cpu --dtype fp32 --size 128 256 --rounds 2

Weights are random. Score thresholds are chosen so that Detectron2 finds about 50 objects in a frame
of a StreetClips clip of 1024x2048, which is drawn. BlockCopy runs as `accelerate` sets it up: with
motion, and with the policy "ExpectedGain" that executes 0.3 of the blocks and learns. Everything of
a result is read. All variants run interleaved, clip by clip; times are the host's, per frame:

    stock          Detectron2's model, under autocast for fp16
    dense_graph    all of it in one CUDA graph, by the same heads, see benchmarks/dense.py
    operators      BlockCopy operator by operator
    graph          BlockCopy as CUDA graphs
    unmerged       the same where "panoptic_seg" is not read, of a PanopticFPN

Writes benchmarks/results/DEVICE_heads_DTYPE.json, a section for each architecture.
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
from blockcopy_d2.engine.arguments import positive
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
    torch.backends.cudnn.benchmark = True
    tf32 = args.dtype != "fp32"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    images = read_clip(args.frames, tuple(args.size), device=args.device)[: args.length]
    path = results_path("heads", args.dtype, args.device)
    for name in args.models:
        start = time.perf_counter()
        results = {"config": MODELS[name]}
        results.update(measure(build(MODELS[name], args.device), images, args))
        shared = {**environment(args.device), "dtype": args.dtype, "size": list(args.size)}
        write_results(path, name, {"shared": shared, **results})
        print(f"{name} ({time.perf_counter() - start:.0f} s)", flush=True)
        for variant, quartiles in results["quartiles_ms"].items():
            count = results["detections"][variant]
            print(f"{variant:>12} {quartiles['median']:8.3f} ms   {count:5.1f} detections")
        print(f"{'stages':>12} {results['stages_ms']}, executed {results['executed']}", flush=True)
    print(f"results in {path}")


@torch.no_grad()
def measure(base, images, args):
    """
    Args:
        base (nn.Module): a meta-architecture of Detectron2.
        images (list[Tensor]): uint8 (3, H, W), a clip.
        args: arguments of the program.

    Returns:
        dict: times of all variants, in milliseconds per frame.
    """
    dtype = _DTYPES[args.dtype]
    is_half = dtype in (torch.float16, torch.bfloat16)
    calibrate(base, images[0])
    videos = {
        name: Video(copy.deepcopy(base), images, cuda_graph=name == "graph", amp=is_half)
        for name in ("operators", "graph")
    }
    if args.device == "cuda" and videos["graph"].stream.graph is None:
        raise SystemExit(f"{type(base).__name__} does not run as a CUDA graph here.")
    variants = {
        "stock": lambda: sum(map(len, stock(base, images, dtype if is_half else None))),
        **{name: video.clip for name, video in videos.items()},
    }
    if hasattr(base, "sem_seg_head"):
        variants["unmerged"] = lambda: videos["graph"].clip(merged=False)
    if args.device == "cuda":
        dense = BestDense(base, images[:1], dtype, modes=args.compile_modes)
        variants["dense_graph"] = lambda: sum(_count(dense([image])) for image in images)
    times, counts = clip_by_clip(variants, len(images), rounds=args.rounds, device=args.device)
    return {
        **{f"{name}_ms": time["median"] for name, time in times.items()},
        "detections": {name: round(count, 1) for name, count in counts.items()},
        "executed": round(videos["graph"].executed, 4),
        "stages_ms": videos["graph"].stages(),
        "quartiles_ms": times,
    }


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
    """Sets the score threshold of a model so that it finds WANTED_DETECTIONS in a picture."""
    if isinstance(model, ProposalNetwork):
        return
    if isinstance(model, DenseDetector):
        # With random weights scores would all be 1, and boxes as large as the picture.
        features = model.backbone(model.preprocess_image([{"image": image}]).tensor)
        logits, deltas, *_ = model.head([features[name] for name in model.head_in_features])
        model.head.cls_score.weight.div_(max(x.std() for x in logits))
        model.head.bbox_pred.weight.div_(max(x.std() for x in deltas))
    least, most = 0.0, 1.0
    for _ in range(20):
        _set_threshold(model, (least + most) / 2)
        (found,) = stock(model, [image], None)
        if len(found) > WANTED_DETECTIONS:
            least = (least + most) / 2
        else:
            most = (least + most) / 2
    _set_threshold(model, most)


def _set_threshold(model, value):
    if not hasattr(model, "roi_heads"):
        model.test_score_thresh = value
        return
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
    add_size(parser, 1024, 2048)
    return parser


if __name__ == "__main__":
    main()
