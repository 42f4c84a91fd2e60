"""
Writes boxes in the format of the CityPersons benchmark: a JSON list with a dict per detection, with
image_id (the number of the frame's file, from 1, in the order of their names), category_id 1, bbox
(x0, y0, width, height, in pixels) and score.
"""

import itertools
import json
import logging
import os
from pathlib import Path

from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from blockcopy_d2.atomic import atomic_write

from .gathering import gather
from .submission import is_last

__all__ = ["CityPersonsSubmission"]

_PEDESTRIAN = 1


class CityPersonsSubmission(DatasetEvaluator):
    """
    Writes the pedestrians of the frames that CityPersons has boxes for, the last ones of clips, and
    scores nothing. The file is ``submission_citypersons.json``, or
    ``submission_citypersons.incomplete.json`` if frames are missing; there is none if no frame was
    run.
    """

    def __init__(self, dataset_name, output_dir, *, to_last_pixel=False):
        """
        Args:
            dataset_name (str): name of clips in Cityscapes' layout.
            output_dir (str): folder of the file. A file of an earlier run is replaced once the new
                one is complete.
            to_last_pixel (bool): see :class:`MissRateEvaluator`.
        """
        self._dataset_name = dataset_name
        self._output_dir = output_dir
        self._beyond = float(to_last_pixel)
        self._logger = logging.getLogger(__name__)
        self.reset()

    def reset(self):
        self._frames = {}

    def process(self, inputs, outputs):
        """
        Args:
            inputs (list[dict]): frames with file_name in Cityscapes' naming. Only the last frames
                of clips are used; others are skipped.
            outputs (list[dict]): "instances" with pred_boxes in the original image, scores and
                pred_classes, of which 0 is pedestrians.
        """
        for frame, output in zip(inputs, outputs, strict=True):
            if is_last(frame):
                instances = output["instances"].to("cpu")
                instances = instances[instances.pred_classes == 0]
                boxes = instances.pred_boxes.tensor.double().tolist()
                name = os.path.basename(frame["file_name"])
                self._frames[name] = list(zip(boxes, instances.scores.tolist(), strict=True))

    def evaluate(self):
        """
        Returns:
            dict: empty, since there are no scores.
        """
        gathered = gather(self._frames)
        if not comm.is_main_process():
            return {}
        found = dict(itertools.chain.from_iterable(frames.items() for frames in gathered))
        expected = filter(is_last, DatasetCatalog.get(self._dataset_name))
        names = sorted(frame["file_name"] for frame in expected)
        numbers = {os.path.basename(name): i for i, name in enumerate(names, start=1)}
        complete = found.keys() == numbers.keys()
        if found:
            detections = [
                {
                    "image_id": numbers[name],
                    "category_id": _PEDESTRIAN,
                    "bbox": [x0, y0, x1 - self._beyond - x0, y1 - self._beyond - y0],
                    "score": score,
                }
                for name in sorted(found, key=numbers.get)
                for (x0, y0, x1, y1), score in found[name]
            ]
            suffix = ".json" if complete else ".incomplete.json"
            path = os.path.join(self._output_dir, f"submission_citypersons{suffix}")
            os.makedirs(self._output_dir, exist_ok=True)
            with atomic_write(path) as temporary:
                Path(temporary).write_text(json.dumps(detections))
            self._logger.info("%d frames of %s are in %s", len(found), self._dataset_name, path)
        if not complete:
            self._logger.warning(
                "%s has %d frames to submit, and %d of them were run. The benchmark takes complete"
                " results only; a submission of an earlier run stays.",
                self._dataset_name,
                len(numbers),
                len(found),
            )
        return {}
