"""From a picture to a model's input."""

import numpy as np
import torch
from detectron2.config import CfgNode, configurable, instantiate
from detectron2.data import detection_utils
from detectron2.data import transforms as T

from .pictures import as_frame

__all__ = ["FrameMapper"]


class FrameMapper:
    """
    Maps a frame to a model's input, as Detectron2's ``DefaultPredictor`` does.

    Attributes:
        formats (sequence[str] or None): that frames can be put in; None for any.
        scale (float or None): pixels of the network's input per pixel of the last frame, of
            whatever stream; that of a certain frame is in its result.
        transforms (TransformList or None): what made the network's input of the last frame.
    """

    formats = ("BGR", "RGB")

    @configurable
    def __init__(self, *, augmentations=(), image_format="BGR"):
        """
        Args:
            augmentations (sequence[Augmentation]): deterministic ones, applied to each frame.
            image_format (str): what the model takes, one of ``formats``.

        Raises:
            ValueError: another image format.
        """
        if self.formats is not None and image_format not in self.formats:
            raise ValueError(f"INPUT.FORMAT is {image_format!r}; a video is in 'BGR' or 'RGB'.")
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.scale = self.transforms = None

    @classmethod
    def from_config(cls, cfg):
        """
        Args:
            cfg (CfgNode or DictConfig): of a model, or a LazyConfig with a test mapper.
        """
        if isinstance(cfg, CfgNode):
            return {
                "augmentations": detection_utils.build_augmentation(cfg, is_train=False),
                "image_format": cfg.INPUT.FORMAT,
            }
        mapper = cfg.dataloader.test.mapper
        return {
            "augmentations": [instantiate(x) for x in mapper.augmentations],
            "image_format": mapper.image_format,
        }

    def __call__(self, image):
        """
        Args:
            image (ndarray or PIL.Image.Image): uint8, (H, W, 3), BGR. Its memory may be used again
                when the call returns.

        Returns:
            dict: "image" (uint8 tensor), and "height" and "width" of ``image``.

        Raises:
            TypeError, ValueError: no such picture.
        """
        image = as_frame(image)
        return self._augment(image[:, :, ::-1] if self.image_format == "RGB" else image)

    def _augment(self, image):
        """As :meth:`__call__`, of an image that is in the model's format."""
        height, width = image.shape[:2]
        augmented = T.AugInput(image)
        self.transforms = self.augmentations(augmented)
        self.scale = augmented.image.shape[0] / height
        tensor = torch.as_tensor(np.array(augmented.image.transpose(2, 0, 1), order="C"))
        return {"image": tensor, "height": height, "width": width}
