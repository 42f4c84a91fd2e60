"""Detectron2's mapper for annotations that also have the visible part of an object."""

import numpy as np
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.structures import Boxes, BoxMode

__all__ = ["VisibleBoxMapper"]


class VisibleBoxMapper(DatasetMapper):
    """
    A :class:`DatasetMapper` for boxes that keeps the "visible_bbox" of annotations, in the same
    mode as their "bbox", as ``gt_visible_boxes`` (Boxes) beside ``gt_boxes``. An image without
    such annotations gets no ``gt_visible_boxes``.
    """

    def _transform_annotations(self, dataset_dict, transforms, image_shape):
        annotations = [
            annotation
            for annotation in dataset_dict.pop("annotations")
            if not annotation.get("iscrowd", 0)
        ]
        visible = [
            BoxMode.convert(a["visible_bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
            for a in annotations
            if "visible_bbox" in a
        ]
        # These change the boxes of the annotations in place, so they come second.
        instances = utils.annotations_to_instances(
            [
                utils.transform_instance_annotations(annotation, transforms, image_shape)
                for annotation in annotations
            ],
            image_shape,
        )
        if visible and len(visible) == len(instances):
            boxes = Boxes(transforms.apply_box(np.array(visible, dtype=np.float64)))
            boxes.clip(image_shape)
            instances.gt_visible_boxes = boxes
        dataset_dict["instances"] = utils.filter_empty_instances(instances)
