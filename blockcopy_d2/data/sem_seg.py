"""Training data of semantic segmentation."""

from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T

__all__ = ["build_sem_seg_train_mapper"]


def build_sem_seg_train_mapper(cfg):
    """
    Detectron2's mapper with the augmentation of its DeepLab project: random crops are taken after
    the resizing, so that they all have the size that the config names.

    Args:
        cfg (CfgNode): with the keys of DeepLab.

    Returns:
        DatasetMapper:
    """
    augmentations = utils.build_augmentation(cfg, is_train=True)
    crop = cfg.INPUT.CROP
    if crop.ENABLED:
        augmentations.insert(
            1,
            T.RandomCrop_CategoryAreaConstraint(
                crop.TYPE,
                crop.SIZE,
                crop.SINGLE_CATEGORY_MAX_AREA,
                cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            ),
        )
    return DatasetMapper(cfg, is_train=True, augmentations=augmentations)
