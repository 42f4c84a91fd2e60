"""Scores pedestrian detectors by their miss rate."""

import itertools
import logging

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table

from .gathering import gather
from .labelled import labelled_pairs, require_one_frame_each
from .miss_rate import SETTINGS, PedestrianFrame, log_average_miss_rate

__all__ = ["MissRateEvaluator"]


class MissRateEvaluator(DatasetEvaluator):
    """
    Log-average miss rate (lower is better) of the labelled frames that were processed, in the
    settings of CityPersons. Class 0 of the data set is pedestrians.
    """

    def __init__(self, dataset_name, *, settings=SETTINGS, to_last_pixel=False):
        """
        Args:
            dataset_name (str): a registered data set whose annotations may have a visibility
                (default 1), and iscrowd 1 for boxes to ignore.
            settings (sequence[MissRateSetting]):
            to_last_pixel (bool): score boxes as one pixel narrower and lower, as Pedestron exports
                boxes that end on their last pixel.
        """
        self._dataset_name = dataset_name
        self._settings = settings
        self._beyond = float(to_last_pixel)
        self._logger = logging.getLogger(__name__)
        self.reset()

    def reset(self):
        self._predictions = []

    def process(self, inputs, outputs):
        """
        Args:
            inputs (list[dict]): frames with image_id. Those whose "labelled" is False are skipped.
            outputs (list[dict]): "instances" with pred_boxes in the original image, scores and
                pred_classes.
        """
        for frame, output in labelled_pairs(inputs, outputs):
            instances = output["instances"].to("cpu")
            instances = instances[instances.pred_classes == 0]
            boxes = instances.pred_boxes.tensor.numpy().astype(np.float64)
            boxes[:, 2:] -= self._beyond
            scores = instances.scores.numpy().astype(np.float64)
            self._predictions.append((frame["image_id"], boxes, scores))

    def evaluate(self):
        """
        Returns:
            dict: ``{"miss_rate": {setting: percent}}`` on the main process, NaN if there is no
            person to find; None on the other ranks.
        """
        gathered = gather(self._predictions)
        if not comm.is_main_process():
            return None
        predictions = sorted(itertools.chain.from_iterable(gathered), key=lambda entry: entry[0])
        if not predictions:
            self._logger.warning("No labelled frame was processed: there is nothing to score.")
        ground_truth = {
            frame["image_id"]: _ground_truth(frame["annotations"])
            for frame in DatasetCatalog.get(self._dataset_name)
            if "annotations" in frame
        }
        image_ids = [image_id for image_id, _, _ in predictions]
        require_one_frame_each(image_ids, ground_truth, self._dataset_name)
        frames = [
            PedestrianFrame(*ground_truth[image_id], boxes, scores)
            for image_id, boxes, scores in predictions
        ]
        results = {
            setting.name: 100 * log_average_miss_rate(frames, setting) for setting in self._settings
        }
        self._logger.info("Log-average miss rate:\n%s", create_small_table(results))
        return {"miss_rate": results}


def _ground_truth(annotations):
    """Returns boxes (G, 4), visibility (G,) and whether to ignore them (G,)."""
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    visibility = [a.get("visibility", 1.0) for a in annotations]
    ignored = [bool(a.get("iscrowd", 0)) for a in annotations]
    return (
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array(visibility, dtype=np.float64),
        np.array(ignored, dtype=bool),
    )
