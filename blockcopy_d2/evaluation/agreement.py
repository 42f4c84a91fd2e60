"""Agreement of one stream of instances with another one, without ground truth."""

import contextlib
import io
import itertools
import logging
import math

import numpy as np
import pycocotools.mask as mask_util
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode, RotatedBoxes
from detectron2.utils import comm
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .gathering import gather

# Most instances of a frame and class that count, by score, as in COCO.
_MAX_DETECTIONS = 100


class InstanceAgreement(DatasetEvaluator):
    """
    COCO AP of the accelerated outputs against the outputs of a reference, such as the dense
    model on the same frames, as pseudo ground truth. Identical streams score 100.

    It is made for streams: it keeps only boxes or run-length encoded masks of a frame.
    """

    def __init__(self, *, score_threshold=0.5):
        """
        Args:
            score_threshold (float): reference instances below it do not count as ground truth. All
                accelerated ones count, ranked by their scores.
        """
        self._score_threshold = score_threshold
        self._logger = logging.getLogger(__name__)
        self.reset()

    def reset(self):
        self._frames = []

    def process(self, references, outputs):
        """
        Args:
            references (list[dict]): outputs of the reference model: "instances" with scores,
                pred_classes, and pred_masks (N, H, W) bool or else pred_boxes, rotated ones, too.
            outputs (list[dict]): outputs of the accelerated model for the same frames.

        Raises:
            ValueError: the two outputs of a frame have different sizes, or only one of them
                has masks.
        """
        for reference, output in zip(references, outputs, strict=True):
            reference, instances = reference["instances"], output["instances"]
            if reference.image_size != instances.image_size:
                raise ValueError(
                    f"The reference has size {reference.image_size}, the output of size "
                    f"{instances.image_size}; expected instances of the same frame."
                )
            if reference.has("pred_masks") != instances.has("pred_masks"):
                raise ValueError("Either both or none of reference and output must have masks.")
            reference = reference[reference.scores >= self._score_threshold]
            self._frames.append(
                (instances.image_size, _annotations(reference), _annotations(instances))
            )

    def evaluate(self):
        """
        Returns:
            dict: ``{"agreement": {"AP", "AP50"}}`` in percent on the main process, NaN if the
            reference has no instances at all; None on the other ranks.
        """
        gathered = gather(self._frames)
        if not comm.is_main_process():
            return None
        frames = list(itertools.chain.from_iterable(gathered))
        if not any(reference for _, reference, _ in frames):
            self._logger.warning(
                "No reference instance has a score of %s or more: there is nothing to compare.",
                self._score_threshold,
            )
            return {"agreement": {"AP": float("nan"), "AP50": float("nan")}}
        precision = _coco_precision(frames)
        return {"agreement": {"AP": _percent(precision), "AP50": _percent(precision[:1])}}


def _annotations(instances):
    """Converts instances on any device to COCO annotations without ids."""
    instances = instances.to("cpu")
    if instances.has("pred_masks"):
        masks = [np.asfortranarray(mask, dtype=np.uint8) for mask in instances.pred_masks.numpy()]
        shapes = [{"segmentation": mask_util.encode(mask)} for mask in masks]
        areas = [float(mask_util.area(shape["segmentation"])) for shape in shapes]
    elif isinstance(instances.pred_boxes, RotatedBoxes):
        shapes = [
            {"segmentation": _encode_rotated(box, instances.image_size)}
            for box in instances.pred_boxes.tensor.tolist()
        ]
        areas = instances.pred_boxes.area().tolist()
    else:
        boxes = instances.pred_boxes.tensor
        boxes = BoxMode.convert(boxes, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
        shapes = [{"bbox": box} for box in boxes]
        areas = instances.pred_boxes.area().tolist()
    categories, scores = instances.pred_classes.tolist(), instances.scores.tolist()
    return [
        {"category_id": category, "score": score, "area": area, "iscrowd": 0, **shape}
        for category, score, area, shape in zip(categories, scores, areas, shapes, strict=True)
    ]


def _encode_rotated(box, image_size):
    """(center x, center y, width, height, degrees counter-clockwise) as a run-length encoding."""
    x, y, width, height, angle = box
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    polygon = []
    for right, down in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
        across, along = right * width / 2, down * height / 2
        polygon += [x + cos * across + sin * along, y - sin * across + cos * along]
    return mask_util.frPyObjects([polygon], *image_size)[0]


def _coco_precision(frames):
    """Precision (T, R, K): by IoU threshold .5 to .95, recall level and class; -1: undefined."""
    references = [reference for _, reference, _ in frames]
    iou_type = "segm" if "segmentation" in next(filter(None, references))[0] else "bbox"
    images = [
        {"id": index, "height": height, "width": width}
        for index, ((height, width), _, _) in enumerate(frames)
    ]
    # pycocotools reports its progress on stdout.
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            _coco(images, references), _coco(images, [out for _, _, out in frames]), iou_type
        )
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, float("inf")]], ["all"]
        evaluation.params.maxDets = [_MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, :, 0, 0]


def _coco(images, annotations):
    """A COCO data set of the annotations of each image."""
    flat = [
        {**annotation, "image_id": image["id"]}
        for image, group in zip(images, annotations, strict=True)
        for annotation in group
    ]
    # COCOeval takes id 0 for "unmatched".
    for index, annotation in enumerate(flat, start=1):
        annotation["id"] = index
    coco = COCO()
    coco.dataset = {
        "images": images,
        "annotations": flat,
        "categories": [{"id": index} for index in sorted({a["category_id"] for a in flat})],
    }
    coco.createIndex()
    return coco


def _percent(precision):
    return 100 * float(precision[precision > -1].mean())
