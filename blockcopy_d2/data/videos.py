"""Groups the frames of a data set into videos, with the frames of each in order."""

import collections
import numbers
import operator

from detectron2.data import DatasetCatalog, MetadataCatalog

from .files import AnnotationError

__all__ = ["load_videos"]

# Keys of labels in Detectron2's formats.
_LABELS = ("annotations", "sem_seg_file_name", "pan_seg_file_name")


def load_videos(dataset_name):
    """
    Args:
        dataset_name (str): a registered data set whose dicts have a video_id. The frames of a video
            may lie anywhere in the list. If they have a frame_index, it gives their order.

    Returns:
        list[list[dict]]: the frames of each video. Each is a copy with labelled (bool): the data
        set's value or, without one, whether the frame has labels.

    Raises:
        KeyError: there is no such data set.
        FileNotFoundError: a file of it is missing.
        AnnotationError: its annotations cannot be read; names their file.
        ValueError: it is not a data set of videos, or the order of frames is unknown.
    """
    dataset = _load(dataset_name)
    if not dataset:
        raise ValueError(f"{dataset_name} has no frames.")
    if not any("video_id" in frame for frame in dataset):
        raise ValueError(
            f"{dataset_name} is a data set of single images: its dicts have no video_id. "
            f"Choose one of video clips, such as streetclips_val."
        )
    told = any(key in frame for frame in dataset for key in _LABELS)
    videos = {}
    for frame in dataset:
        for key in ("video_id", "file_name"):
            if key not in frame:
                raise ValueError(f"{dataset_name} has a dict without {key}: {str(frame)[:200]}")
        labelled = not told or any(key in frame for key in _LABELS)
        videos.setdefault(frame["video_id"], []).append({"labelled": labelled, **frame})
    return [_in_order(frames, dataset_name) for frames in videos.values()]


def _load(dataset_name):
    if dataset_name not in DatasetCatalog.list():
        return DatasetCatalog.get(dataset_name)  # raises, and lists those there are
    try:
        return DatasetCatalog.get(dataset_name)
    except (AnnotationError, FileNotFoundError):
        raise
    except Exception as error:
        # Loaders raise errors of all kinds; most of them do not check their files.
        file = MetadataCatalog.get(dataset_name).get("json_file")
        raise AnnotationError(
            f"The data set {dataset_name}{f' with the annotations {file}' if file else ''} cannot"
            f" be loaded: {type(error).__name__}: {error}"
        ) from error


def _in_order(frames, dataset_name):
    video_id = frames[0]["video_id"]
    indices = [frame.get("frame_index") for frame in frames]
    if all(index is None for index in indices):
        return frames
    wrong = [index for index in indices if not isinstance(index, numbers.Integral)]
    if wrong:
        raise ValueError(
            f"{dataset_name}: a frame of the video {video_id!r} has the frame_index {wrong[0]!r};"
            " expected an integer for each, or none at all."
        )
    index, count = collections.Counter(indices).most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"{dataset_name}: {count} frames of the video {video_id!r} have the frame_index"
            f" {index}, so their order is unknown. Give each clip a video_id of its own."
        )
    return sorted(frames, key=operator.itemgetter("frame_index"))
