"""Box AP on video."""

import contextlib
import io
import itertools

from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm

__all__ = ["VideoCOCOEvaluator"]


class VideoCOCOEvaluator(COCOEvaluator):
    """
    Detectron2's COCO evaluator, of boxes, for video: only labelled frames are scored, and only
    those that were processed. Clips may be left out (``INPUT.CLIP.NUM_CLIPS``) or fail part-way.
    """

    def __init__(self, dataset_name, output_dir):
        """
        Args:
            dataset_name (str): a registered data set in Detectron2's format.
            output_dir (str): for the ground truth and the detections in COCO's format.
        """
        # A file of the ground truth from an earlier run may be that of other data.
        super().__init__(
            dataset_name, tasks=("bbox",), output_dir=output_dir, allow_cached_coco=False
        )
        self.reset()

    def reset(self):
        super().reset()
        self._image_ids = []

    def process(self, inputs, outputs):
        """
        Args:
            inputs (list[dict]): frames with image_id. Those whose "labelled" is False are passed
                over.
            outputs (list[dict]): of the model, for these frames.
        """
        for frame, output in zip(inputs, outputs, strict=True):
            if frame.get("labelled", True):
                super().process([frame], [output])
                self._image_ids.append(frame["image_id"])

    def evaluate(self):
        """
        Returns:
            dict: ``{"bbox": {"AP", "AP50", ...}}`` in percent on the main process, as in Detectron2
            NaN if nothing at all was detected; empty on the other ranks.
        """
        comm.synchronize()
        image_ids = list(itertools.chain.from_iterable(comm.gather(self._image_ids)))
        # pycocotools reports its progress on stdout.
        with contextlib.redirect_stdout(io.StringIO()):
            return super().evaluate(img_ids=image_ids)
