"""Shared by evaluators on video: the frames that count, and files that are written completely."""

import collections
import contextlib
import os
import tempfile

from detectron2.utils.file_io import PathManager

from blockcopy_d2.data.files import AnnotationError

__all__ = ["labelled_pairs", "require_one_frame_each", "whole_files"]


def labelled_pairs(inputs, outputs):
    """
    Args:
        inputs (list[dict]): frames. Those whose "labelled" is False are skipped.
        outputs (list[dict]): outputs of the model, for these frames.

    Yields:
        tuple[dict, dict]: input and output of each labelled frame.
    """
    for frame, output in zip(inputs, outputs, strict=True):
        if frame.get("labelled", True):
            yield frame, output


def require_one_frame_each(image_ids, known, dataset_name):
    """
    Args:
        image_ids (list): ids of the frames that were run.
        known (container): image_ids that have ground truth.
        dataset_name (str):

    Raises:
        AnnotationError: two frames share an image_id, or one has no ground truth.
    """
    (most, count) = collections.Counter(image_ids).most_common(1)[0] if image_ids else (None, 0)
    if count > 1:
        raise AnnotationError(
            f"{count} labelled frames of {dataset_name} have the image_id {most!r}; expected one of"
            " its own for each, also across videos."
        )
    unknown = [image_id for image_id in image_ids if image_id not in known]
    if unknown:
        raise AnnotationError(
            f"{len(unknown)} frames of {dataset_name} that were run have no annotations, such as"
            f" image_id {unknown[0]!r}. Set 'labelled' to False for frames that have none."
        )


@contextlib.contextmanager
def whole_files(folder):
    """
    A context for writing files that appear once they are complete.

    Args:
        folder (str or None): their folder, created if missing.

    Yields:
        str or None: a temporary folder beside it. Leaving the context moves its files to ``folder``
        and replaces those of the same names. Leaving it by an exception removes them.
    """
    if not folder:
        yield None
        return
    PathManager.mkdirs(folder)
    with tempfile.TemporaryDirectory(prefix=".unfinished.", dir=folder) as temporary:
        yield temporary
        for name in sorted(os.listdir(temporary)):
            os.replace(os.path.join(temporary, name), os.path.join(folder, name))
