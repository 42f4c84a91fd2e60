"""COCO's scores on video."""

import contextlib
import io
import itertools
import logging
import math
import numbers

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm

from blockcopy_d2.data.files import AnnotationError

from .gathering import gather
from .labelled import labelled_pairs, require_one_frame_each, whole_files

__all__ = ["VideoCOCOEvaluator"]


class VideoCOCOEvaluator(COCOEvaluator):
    """
    Detectron2's COCO evaluator for video: only labelled frames are scored, and only those that were
    processed. Clips may be cut (``INPUT.CLIP.NUM_FRAMES``), left out (``INPUT.CLIP.NUM_CLIPS``) or
    fail part-way.
    """

    def __init__(self, dataset_name, output_dir, *, tasks=None):
        """
        Args:
            dataset_name (str): a registered data set in Detectron2's or COCO's format.
            output_dir (str): folder for the detections in COCO's format and, for a data set in
                Detectron2's format, the ground truth.
            tasks (tuple[str] or None): tasks of "bbox", "segm" and "keypoints". None: those that
                both the annotations and the first outputs have.

        Raises:
            AnnotationError: names the file of annotations that cannot be used.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self._dataset_name = dataset_name
        self._annotations = metadata.get("json_file") or f"the data set {dataset_name}"
        converted = metadata.get("json_file") is None
        try:
            # Annotations converted by an earlier run may belong to other data.
            super().__init__(
                dataset_name,
                tasks=tasks,
                distributed=False,
                output_dir=output_dir,
                allow_cached_coco=False,
            )
            self._check_annotations()
        except (AnnotationError, FileNotFoundError):
            raise
        except Exception as error:
            # pycocotools uses assertions, and fails in many ways on missing entries.
            raise AnnotationError(
                f"The annotations of {self._annotations} cannot be used:"
                f" {type(error).__name__}: {error}"
            ) from error
        finally:
            # Detectron2 leaves it for all later evaluations, even of other data and folders.
            if converted and metadata.get("json_file") is not None:
                del metadata.json_file
        self.reset()

    def reset(self):
        super().reset()
        self._image_ids = []

    def process(self, inputs, outputs):
        """
        Args:
            inputs (list[dict]): frames with image_id. Those whose "labelled" is False are skipped.
            outputs (list[dict]): outputs of the model, for these frames.
        """
        for frame, output in labelled_pairs(inputs, outputs):
            super().process([frame], [output])
            self._image_ids.append(frame["image_id"])

    def evaluate(self):
        """
        Returns:
            dict: ``{"bbox": {"AP", "AP50", ...}, ...}`` in percent on the main process, NaN if
            nothing at all was detected (as in Detectron2); empty on the other ranks.

        Raises:
            AnnotationError: the annotations do not fit the frames that were run, or hold entries
                that COCO's scores cannot use.
        """
        gathered = gather((self._image_ids, self._predictions))
        if not comm.is_main_process():
            return {}
        image_ids, self._predictions = (
            list(itertools.chain.from_iterable(parts)) for parts in zip(*gathered, strict=True)
        )
        require_one_frame_each(image_ids, self._coco_api.imgs, self._dataset_name)
        output_dir = self._output_dir
        try:
            # pycocotools reports its progress on stdout.
            with (
                whole_files(output_dir) as self._output_dir,
                contextlib.redirect_stdout(io.StringIO()),
            ):
                return super().evaluate(img_ids=image_ids)
        except (AnnotationError, OSError):
            raise
        except Exception as error:
            # Raised by pycocotools, which does not check the file.
            raise AnnotationError(
                "The detections cannot be scored against the annotations of"
                f" {self._annotations}: {type(error).__name__}: {error}"
            ) from error
        finally:
            self._output_dir = output_dir

    def _tasks_from_predictions(self, predictions):
        tasks = super()._tasks_from_predictions(predictions)
        scored = [task for task in tasks if self._has_labels(task)]
        if not scored:
            raise AnnotationError(
                f"The annotations of {self._annotations} have no entries for the detected"
                f" {' and '.join(tasks)}."
            )
        if scored != tasks:
            logging.getLogger(__name__).warning(
                "The annotations of %s have %s only, so only these are scored.",
                self._annotations,
                " and ".join(scored),
            )
        return scored

    def _has_labels(self, task):
        key = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}[task]
        annotations = self._coco_api.anns.values()
        return not annotations or any(key in annotation for annotation in annotations)

    def _check_annotations(self):
        content = self._coco_api.dataset
        missing = [key for key in ("images", "categories") if key not in content]
        if missing:
            raise AnnotationError(
                f"{self._annotations} has no {missing[0]!r}: it is not in COCO's format."
            )
        if len(content["images"]) != len(self._coco_api.imgs):
            raise AnnotationError(
                f"{self._annotations} has {len(content['images'])} images, but only"
                f" {len(self._coco_api.imgs)} different ids of them: frames of different videos"
                " need different image_ids."
            )
        names = [isinstance(image_id, str) for image_id in self._coco_api.imgs]
        if any(names) and not all(names):
            # NumPy turns all of them into strings, which pycocotools then does not find.
            raise AnnotationError(
                f"{self._annotations} has images whose ids are strings, and others whose ids are"
                " not; expected one or the other."
            )
        annotations = content.setdefault("annotations", [])
        for number, annotation in enumerate(annotations, start=1):
            problem = _problem_of(annotation, self._coco_api.cats)
            if problem:
                raise AnnotationError(
                    f"{self._annotations}: an annotation {problem}: {str(annotation)[:200]}"
                )
            # COCO's own ids are not used: pycocotools takes 0 for none, and confuses duplicates.
            annotation["id"] = number
            annotation.setdefault("iscrowd", 0)
        with contextlib.redirect_stdout(io.StringIO()):
            self._coco_api.createIndex()
        strangers = [a for a in annotations if a["image_id"] not in self._coco_api.imgs]
        if strangers:
            logging.getLogger(__name__).warning(
                "%d of %d annotations of %s belong to no image in it, such as image_id %r.",
                len(strangers),
                len(annotations),
                self._annotations,
                strangers[0]["image_id"],
            )


def _problem_of(annotation, categories):
    """str or None: the problem that COCO's scores would have with it."""
    for key in ("image_id", "category_id", "area"):
        if key not in annotation:
            return f"has no {key!r}, which COCO's scores need"
    if annotation["category_id"] not in categories:
        return f"is of the category {annotation['category_id']!r}, which is not listed"
    if not _are_finite([annotation["area"]]):
        return "has an 'area' that is not a number"
    box = annotation.get("bbox", [0] * 4)
    # Five numbers are a rotated box.
    if not isinstance(box, list) or len(box) not in (4, 5) or not _are_finite(box):
        return "has a 'bbox' that is not four numbers"
    if min(box[2:4]) < 0 or annotation["area"] < 0:
        return "has a negative size"
    if annotation.get("iscrowd", 0) not in (0, 1):
        return "has an 'iscrowd' that is neither 0 nor 1"
    return None


def _are_finite(values):
    return all(isinstance(value, numbers.Real) and math.isfinite(value) for value in values)
