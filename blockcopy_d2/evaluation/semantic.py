"""Semantic segmentation on any data set, for video."""

import contextlib
import itertools

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from detectron2.utils import comm

from blockcopy_d2.data.files import AnnotationError, read_labels

from .gathering import gather
from .labelled import labelled_pairs, whole_files

__all__ = ["VideoSemSegEvaluator"]


class VideoSemSegEvaluator(SemSegEvaluator):
    """
    Detectron2's evaluator for data sets with unlabelled frames, which are skipped. ``{"sem_seg":
    {"mIoU", "fwIoU", "mACC", "pACC", "IoU-<class>", ...}}`` in percent.
    """

    def __init__(self, dataset_name, output_dir=None):
        """
        Args:
            dataset_name (str): a data set whose labelled dicts have sem_seg_file_name, and whose
                metadata have stuff_classes and ignore_label.
            output_dir (str): folder for the predictions; None: they are not kept.
        """
        with _labelled_alone(dataset_name) as labelled:
            super().__init__(
                labelled,
                distributed=False,
                output_dir=output_dir,
                sem_seg_loading_fn=self._read_labels,
            )
        self._dataset_name = dataset_name
        self._size = None

    def process(self, inputs, outputs):
        """
        Args:
            inputs (list[dict]): frames. Those whose "labelled" is False are skipped.
            outputs (list[dict]): outputs of the model, for these frames.

        Raises:
            AnnotationError: names the file of labels that cannot be used.
        """
        for frame, output in labelled_pairs(inputs, outputs):
            if frame["file_name"] not in self.input_file_to_gt_file:
                raise AnnotationError(
                    f"{frame['file_name']} of {self._dataset_name} has no sem_seg_file_name. Set"
                    " 'labelled' to False for frames that have no labels."
                )
            self._size = tuple(output["sem_seg"].shape[-2:])
            super().process([frame], [output])

    def evaluate(self):
        """
        Returns:
            dict or None: see above; on the main process only.
        """
        gathered = gather((self._conf_matrix, self._b_conf_matrix, self._predictions))
        if not comm.is_main_process():
            return None
        matrices, boundary_matrices, predictions = zip(*gathered, strict=True)
        self._conf_matrix, self._b_conf_matrix = sum(matrices), sum(boundary_matrices)
        self._predictions = list(itertools.chain.from_iterable(predictions))
        output_dir = self._output_dir
        try:
            # Classes that do not occur divide by zero.
            with whole_files(output_dir) as self._output_dir, np.errstate(invalid="ignore"):
                return super().evaluate()
        finally:
            self._output_dir = output_dir

    def _read_labels(self, file_name, dtype):
        labels = read_labels(file_name, size=self._size).astype(dtype)
        wrong = labels[(labels != self._ignore_label) & (labels >= self._num_classes)]
        if wrong.size:
            raise AnnotationError(
                f"The labels {file_name} have the class {wrong[0]}; expected 0 to"
                f" {self._num_classes - 1} and {self._ignore_label} for pixels that do not count."
            )
        return labels


@contextlib.contextmanager
def _labelled_alone(dataset_name):
    """
    Registers the labelled frames alone, since Detectron2 expects labels of all; yields the name.
    """
    name = f"{dataset_name} (labelled)"
    frames = [f for f in DatasetCatalog.get(dataset_name) if "sem_seg_file_name" in f]
    DatasetCatalog.register(name, lambda: frames)
    try:
        metadata = MetadataCatalog.get(dataset_name).as_dict()
        MetadataCatalog.get(name).set(**{k: v for k, v in metadata.items() if k != "name"})
        yield name
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
