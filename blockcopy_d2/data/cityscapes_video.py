"""
Video clips and labelled frames in the layout of Cityscapes:

    leftImg8bit_sequence/<split>/<city>/<city>_<sequence>_<frame>_leftImg8bit.png
    gtFine/<split>/<city>/<city>_<sequence>_<frame>_gtFine_{instanceIds,labelIds,...}.png
    leftImg8bit/<split>/<city>/...                                   the labelled frames alone

Cityscapes labels the 20th image of each snippet of 30. A clip here is the 20 frames that end with
the labelled one.
"""

import os

import pycocotools.mask as mask_util
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from detectron2.data.datasets.cityscapes import load_cityscapes_instances
from detectron2.structures import BoxMode

from .files import AnnotationError, find_files, image_size, require_folder
from .registration import register_dataset

CLIP_LENGTH = 20


def load_cityscapes_video(root, split, origin=""):
    """
    Args:
        root (str): folder that holds ``leftImg8bit_sequence`` and ``gtFine``. A split without
            ``gtFine`` takes its clips from ``leftImg8bit`` and has no labelled frames.
        split (str): "train", "val" or "test".
        origin (str): where the data set comes from, a sentence for the error message.

    Returns:
        list[dict]: dicts in Detectron2's format, one per frame, clip after clip and in order,
        with file_name, image_id, height, width and

        * video_id (str): ``<city>_<sequence>_<frame>`` of the clip's labelled frame;
        * frame_index (int): 0 for the first frame of the clip;
        * labelled (bool): whether the frame has ground truth; then also sem_seg_file_name.

        Only the file of the labelled frame is checked; a frame that is missing or broken is
        reported when it is read.

    Raises:
        FileNotFoundError: names the missing folder, and where the data set comes from.
        AnnotationError: names a file of labels that is not an image, or not named in this way.
    """
    sequence_dir = os.path.join(root, "leftImg8bit_sequence", split)
    gt_dir = os.path.join(root, "gtFine", split)
    require_folder(sequence_dir, root, origin)
    if os.path.isdir(gt_dir):
        suffix, labelled = "_gtFine_instanceIds.png", True
        files = find_files(gt_dir, f"<city>/*{suffix}", root, origin)
    else:
        suffix, labelled = "_leftImg8bit.png", False
        image_dir = os.path.join(root, "leftImg8bit", split)
        files = find_files(image_dir, f"<city>/*{suffix}", root, origin)

    dataset = []
    for file in files:
        city = os.path.basename(os.path.dirname(file))
        city_dir = os.path.join(sequence_dir, city)
        require_folder(city_dir, root, origin)
        video_id = os.path.basename(file)[: -len(suffix)]
        sequence, _, last = video_id.rpartition("_")
        if not (sequence and last.isdecimal()):
            raise AnnotationError(
                f"{file} is not named <city>_<sequence>_<frame>{suffix}, as Cityscapes names files."
            )
        width, height = image_size(file)
        first = max(int(last) - CLIP_LENGTH + 1, 0)
        for frame_index, number in enumerate(range(first, int(last) + 1)):
            image_id = f"{sequence}_{number:0{len(last)}d}_leftImg8bit.png"
            dataset.append(
                {
                    "file_name": os.path.join(city_dir, image_id),
                    "image_id": image_id,
                    "height": height,
                    "width": width,
                    "video_id": video_id,
                    "frame_index": frame_index,
                    "labelled": labelled and number == int(last),
                }
            )
        if labelled:
            dataset[-1]["sem_seg_file_name"] = file.replace(suffix, "_gtFine_labelTrainIds.png")
    return dataset


def load_labelled_frames(root, split, origin=""):
    """
    The labelled frames alone, to train a detector on. Masks are run-length encoded from the
    instance id images and exact, holes included, so ``INPUT.MASK_FORMAT`` must be "bitmask".

    Args:
        root, split, origin: as in :func:`load_cityscapes_video`.

    Returns:
        list[dict]: dicts of Detectron2's instance segmentation format.

    Raises:
        FileNotFoundError: names the missing folder, and where the data set comes from.
    """
    image_dir = os.path.join(root, "leftImg8bit", split)
    gt_dir = os.path.join(root, "gtFine", split)
    for folder in (image_dir, gt_dir):
        require_folder(folder, root, origin)
    dataset = load_cityscapes_instances(image_dir, gt_dir, from_json=False, to_polygons=False)
    for record in dataset:
        for annotation in record["annotations"]:
            # Detectron2's box ends at the centre of the last pixel, one pixel short of the mask.
            annotation["bbox"] = mask_util.toBbox(annotation["segmentation"]).tolist()
            annotation["bbox_mode"] = BoxMode.XYWH_ABS
    return dataset


def register_cityscapes_video(
    name, root, split, *, evaluator_type="cityscapes_video_instance", origin=""
):
    """
    Register the clips of :func:`load_cityscapes_video` with the metadata Detectron2 sets for
    Cityscapes. A name that is registered already is left alone. No file is accessed.

    Args:
        name (str): name of the data set.
        evaluator_type (str): see :func:`blockcopy_d2.evaluation.build_evaluator`.
    """
    _register(
        name,
        lambda: load_cityscapes_video(root, split, origin),
        image_dir=os.path.join(root, "leftImg8bit_sequence", split),
        gt_dir=os.path.join(root, "gtFine", split),
        evaluator_type=evaluator_type,
    )


def register_labelled_frames(name, root, split, *, origin=""):
    """:func:`register_cityscapes_video` for :func:`load_labelled_frames`."""
    _register(
        name,
        lambda: load_labelled_frames(root, split, origin),
        image_dir=os.path.join(root, "leftImg8bit", split),
        gt_dir=os.path.join(root, "gtFine", split),
        evaluator_type="cityscapes_instance",
    )


def _register(name, load, **metadata):
    metadata.update(ignore_label=255, **_get_builtin_metadata("cityscapes"))
    register_dataset(name, load, **metadata)
