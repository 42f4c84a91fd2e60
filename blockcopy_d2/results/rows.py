"""
Rows of results: the detections of a frame, in the terms of COCO's result format.

Shape shorthand in this module:

    N: objects of a frame
    H, W: rows and columns of a frame in pixels
"""

import numpy as np
import torch
from pycocotools import mask as mask_util

from blockcopy_d2.modeling import proposal_instances

from .run_lengths import encode_labels, encode_masks
from .tracking import LEAST_SCORE

__all__ = ["Categories", "RowMaker"]

# Digits behind the point: a thousandth of a pixel.
_BOX_DIGITS, _SCORE_DIGITS = 3, 6


class Categories:
    """
    Ids of classes in the data set that a model was trained on.

    Attributes:
        names (dict[str, dict[int, str]]): names of "things" and of "stuff", by id.
    """

    def __init__(self, metadata=None):
        """
        Args:
            metadata (Metadata or None): Detectron2's. Without its ``thing_classes`` or
                ``thing_dataset_id_to_contiguous_id`` (and those of ``stuff``) an id is the number
                of the class in the model's output.
        """
        self._ids, self.names = {}, {}
        for kind in ("thing", "stuff"):
            known = {} if metadata is None else metadata.get(f"{kind}_dataset_id_to_contiguous_id")
            self._ids[kind] = {index: number for number, index in (known or {}).items()}
            names = [] if metadata is None else metadata.get(f"{kind}_classes") or []
            self.names[f"{kind}s" if kind == "thing" else kind] = {
                self._ids[kind].get(index, index): name for index, name in enumerate(names)
            }

    def thing(self, index):
        """int: id of a class of instances."""
        return self._ids["thing"].get(index, index)

    def stuff(self, index):
        """int: id of a class of pixels."""
        return self._ids["stuff"].get(index, index)


class RowMaker:
    """
    Turns outputs of a model into rows, dicts that :func:`json.dump` takes:

    ===============  ============================================================================
    ``image_id``     number of the frame, from 0, of those that were run
    ``time``         seconds from the first frame to when it is shown; missing where that is not
                     known
    ``captured``     of a live source, when the frame came, in seconds since 1970
    ``category_id``  see :class:`Categories`; missing for proposals
    ``bbox``         x, y, width and height in pixels of the frame; of rotated boxes x and y of the
                     centre, width, height and angle in degrees
    ``score``
    ``segmentation`` mask in COCO's run lengths, ``{"size": [H, W], "counts": "..."}``
    ``keypoints``    x, y and score of each
    ``isthing``      of a panoptic segment
    ``track_id``     of an object that is tracked, from its second frame on
    ===============  ============================================================================

    A row of a panoptic output is a segment, thing or stuff. Otherwise it is an instance or a
    proposal. A row of a semantic segmentation is a class that has a pixel in the frame, with the
    mask of its pixels, and without box and score, as in COCO-Stuff.
    """

    def __init__(self, metadata=None, *, threshold=0.0, tracker=None):
        """
        Args:
            metadata (Metadata or None): see :class:`Categories`.
            threshold (float): minimum score of a row. Detections without a score always have a row.
            tracker (Tracker or None): tracker of this video. It sees detections below the
                threshold, too.
        """
        self.categories = Categories(metadata)
        self.threshold = threshold
        self._tracker = tracker
        self._least = threshold if tracker is None else min(threshold, LEAST_SCORE)

    def __call__(self, output, index, seconds=None, captured=None):
        """
        Args:
            output (dict): output of a model for one frame. It stays as it is.
            index (int): number of the frame.
            seconds (float or None): when it is shown.
            captured (float or None): when it came, in seconds since 1970.

        Returns:
            list[dict]: those of the frame.

        Raises:
            ValueError: an output of a kind that has no rows, or numbers that are not finite.
        """
        rows = self._found(output)
        if self._tracker is not None:
            self._tracker(rows, seconds)
            rows = [row for row in rows if row.get("score", 1.0) >= self.threshold]
        head = {"image_id": index}
        if seconds is not None:
            head["time"] = round(float(seconds), _SCORE_DIGITS)
        if captured is not None:
            head["captured"] = round(float(captured), _SCORE_DIGITS)
        return [{**head, **row} for row in rows]

    def _found(self, output):
        if "panoptic_seg" in output:
            return self._segments(*output["panoptic_seg"])
        if "instances" in output:
            return self._instances(output["instances"], classes=True)
        if "proposals" in output:
            return self._instances(proposal_instances(output["proposals"]), classes=False)
        if "sem_seg" in output:
            return self._classes(output["sem_seg"])
        raise ValueError(
            f"A model whose output has {', '.join(output) or 'nothing'} has no rows of results;"
            " expected instances, proposals, sem_seg or panoptic_seg."
        )

    def _instances(self, instances, classes):
        instances = instances[instances.scores >= self._least]
        boxes = instances.pred_boxes.tensor.detach().float().cpu()
        if boxes.shape[1] == 4:
            boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
        boxes, scores = boxes.numpy(), instances.scores.detach().float().cpu().numpy()
        if not np.isfinite(boxes).all():
            raise ValueError("Boxes of the model are not finite.")
        rows = [
            {"bbox": _rounded(box, _BOX_DIGITS), "score": round(float(score), _SCORE_DIGITS)}
            for box, score in zip(boxes, scores, strict=True)
        ]
        fields = {}
        if classes:
            labels = instances.pred_classes.tolist()
            fields["category_id"] = [self.categories.thing(label) for label in labels]
        if instances.has("pred_masks"):
            fields["segmentation"] = encode_masks(_as_tensor(instances.pred_masks))
        if instances.has("pred_keypoints"):
            points = instances.pred_keypoints.detach().float().cpu().clone()
            points[..., :2] -= 0.5  # COCO counts pixels, Detectron2 measures from their corner.
            fields["keypoints"] = [_rounded(x, _BOX_DIGITS) for x in points.flatten(1).numpy()]
        for name, values in fields.items():
            for row, value in zip(rows, values, strict=True):
                row[name] = value
        return rows

    def _segments(self, labels, segments):
        if segments is None:
            raise ValueError(
                "The panoptic output has no list of its segments; expected that of PanopticFPN,"
                " (panoptic_seg, segments_info)."
            )
        masks, rows = encode_labels(labels), []
        segments = [x for x in segments if x.get("score", 1.0) >= self._least and x["id"] in masks]
        for segment in segments:
            mask = masks[segment["id"]]
            category = self.categories.thing if segment["isthing"] else self.categories.stuff
            row = {
                "category_id": category(segment["category_id"]),
                "isthing": bool(segment["isthing"]),
                "bbox": _rounded(mask_util.toBbox(mask), _BOX_DIGITS),
                "segmentation": mask,
            }
            if "score" in segment:
                row["score"] = round(float(segment["score"]), _SCORE_DIGITS)
            rows.append(row)
        return rows

    def _classes(self, scores):
        return [
            {"category_id": self.categories.stuff(label), "segmentation": mask}
            for label, mask in encode_labels(scores.argmax(dim=0)).items()
        ]


def _as_tensor(masks):
    # Some heads give Detectron2's BitMasks.
    return getattr(masks, "tensor", masks)


def _rounded(numbers, digits):
    return [round(x, digits) for x in np.asarray(numbers, dtype=np.float64).tolist()]
