"""
Writes results in the format of the Cityscapes benchmark, one zip file per task:

* instances: a text file per frame, a line per instance with its mask's file, label id and score;
* semantic segmentation: an 8 bit image per frame with the label id of every pixel.

Detectron2's evaluators write both for cityscapesscripts.
"""

import logging
import os
import shutil
import tempfile

from detectron2.data import DatasetCatalog
from detectron2.evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from blockcopy_d2.atomic import atomic_write

from .gathering import gather, wait_for_all

__all__ = ["CityscapesInstanceSubmission", "CityscapesSemSegSubmission", "is_last"]


class _Submission:
    """
    Mixin in front of a Detectron2 evaluator that writes files per frame. It keeps the files and
    scores nothing. The frames are those that Cityscapes has labels for, the last ones of clips.
    """

    name = ""

    def __init__(self, dataset_name, output_dir):
        """
        Args:
            dataset_name (str): a data set in Cityscapes' layout.
            output_dir (str): folder of ``<name>.zip``. A file of an earlier run is replaced once
                the new one is complete. If frames are missing, the file is
                ``<name>.incomplete.zip``; if none was run, there is none.
        """
        super().__init__(dataset_name)
        self._dataset_name = dataset_name
        self._logger = logging.getLogger(__name__)
        self._output_dir = output_dir
        self._working_dir = self._temp_dir = None

    def reset(self):
        path = None
        if comm.is_main_process():
            PathManager.mkdirs(self._output_dir)
            self._working_dir = tempfile.TemporaryDirectory(
                prefix=f".{self.name}.", dir=self._output_dir
            )
            path = self._working_dir.name
        # All processes write to the folder of the first one. Some may still score other data.
        wait_for_all()
        self._temp_dir = comm.all_gather(path)[0]
        self._num_frames = 0

    def process(self, inputs, outputs):
        """
        Args:
            inputs (list[dict]): frames with file_name in Cityscapes' naming. Only the last frames
                of clips are used; others are skipped.
            outputs (list[dict]): outputs of the model, for these frames.
        """
        for frame, output in zip(inputs, outputs, strict=True):
            if is_last(frame):
                super().process([frame], [output])
                self._num_frames += 1

    def evaluate(self):
        """
        Returns:
            dict: empty, since there are no scores.
        """
        found = sum(gather(self._num_frames))
        if comm.is_main_process():
            expected = sum(map(is_last, DatasetCatalog.get(self._dataset_name)))
            suffix = ".zip" if found == expected else ".incomplete.zip"
            path = os.path.join(self._output_dir, self.name + suffix)
            if found:
                with atomic_write(path) as temporary:
                    shutil.make_archive(temporary.removesuffix(".zip"), "zip", self._temp_dir)
                self._logger.info("%d frames of %s are in %s", found, self._dataset_name, path)
            self._working_dir.cleanup()
            if found != expected:
                self._logger.warning(
                    "%s has %d frames to submit, and %d of them were run. The benchmark takes"
                    " complete results only; a submission of an earlier run stays.",
                    self._dataset_name,
                    expected,
                    found,
                )
        return {}


class CityscapesInstanceSubmission(_Submission, CityscapesInstanceEvaluator):
    """Instances, in ``submission_instance.zip``."""

    name = "submission_instance"


class CityscapesSemSegSubmission(_Submission, CityscapesSemSegEvaluator):
    """Label ids of all pixels, in ``submission_sem_seg.zip``."""

    name = "submission_sem_seg"


def is_last(frame):
    """
    Args:
        frame (dict): frame of a data set in Cityscapes' layout.

    Returns:
        bool: whether its clip is named after it. True for all still images.
    """
    name = os.path.basename(frame["file_name"])
    return "video_id" not in frame or name.startswith(frame["video_id"])
