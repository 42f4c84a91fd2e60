"""
Registers the video data sets below ``$DETECTRON2_DATASETS`` (default ``./datasets``), as
Detectron2 does its own: the names always exist, files are looked for when a data set is loaded.
"""

import os

from .cityscapes_video import register_cityscapes_video, register_labelled_frames

_CITYSCAPES = (
    "Cityscapes comes from https://www.cityscapes-dataset.com: unpack the packages "
    "leftImg8bit_sequence_trainvaltest.zip and gtFine_trainvaltest.zip there."
)


def register_all_cityscapes_video(root):
    """Registers ``cityscapes_video_fine_{instance_seg,sem_seg}_{train,val,test}``."""
    root = os.path.join(root, "cityscapes")
    for split in ("train", "val", "test"):
        register_cityscapes_video(
            f"cityscapes_video_fine_instance_seg_{split}", root, split, origin=_CITYSCAPES
        )
        register_cityscapes_video(
            f"cityscapes_video_fine_sem_seg_{split}",
            root,
            split,
            evaluator_type="cityscapes_video_sem_seg",
            origin=_CITYSCAPES,
        )


def register_all_streetclips(root):
    """
    Registers ``streetclips_{train,val}`` (512x1024) and ``streetclips_full_{train,val}``
    (1024x2048), and under the same names with ``_frames`` appended their labelled frames alone.
    """
    for folder, size in (("streetclips", "512x1024"), ("streetclips_full", "1024x2048")):
        path = os.path.join(root, folder)
        for split in ("train", "val"):
            origin = (
                f"StreetClips is drawn by: python -m blockcopy_d2.data.streetclips "
                f"--output {path} --split {split} --size {size} --clips N."
            )
            name = f"{folder}_{split}"
            register_cityscapes_video(name, path, split, origin=origin)
            register_labelled_frames(f"{name}_frames", path, split, origin=origin)


_root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
register_all_cityscapes_video(_root)
register_all_streetclips(_root)
