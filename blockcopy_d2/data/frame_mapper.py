"""Maps a picture to a model's input."""

import numpy as np
import torch
from detectron2.config import CfgNode, configurable, instantiate
from detectron2.data import detection_utils
from detectron2.data import transforms as T

from .device_resize import only_resize, resize_picture, resize_transforms
from .pictures import as_frame

try:
    import cv2
except ImportError:
    # It is missing, or has no libraries of the system: copies are slower then.
    cv2 = None

__all__ = ["FrameMapper"]


class FrameMapper:
    """
    Maps a frame to a model's input, as Detectron2's ``DefaultPredictor`` does. A frame on a GPU
    stays there, see :attr:`takes_tensors`, and becomes the same input, bit for bit.

    Attributes:
        formats (sequence[str] or None): formats that frames can be converted to; None for any.
        scale (float or None): pixels of the network's input per pixel of the last frame of any
            stream. For a certain frame, see its result.
        transforms (TransformList or None): transforms of the last frame to the network's input.
    """

    formats = ("BGR", "RGB")

    @configurable
    def __init__(self, *, augmentations=(), image_format="BGR"):
        """
        Args:
            augmentations (sequence[Augmentation]): deterministic ones, applied to each frame.
            image_format (str): format of the model's input, one of ``formats``.

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
            cfg (CfgNode or DictConfig): a model's config, or a LazyConfig with a test mapper.
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

    @property
    def takes_tensors(self):
        """
        bool: whether frames may be tensors. They are resized on their device as Detectron2's
        ``ResizeShortestEdge`` and ``Resize`` do; other augmentations need arrays.
        """
        return type(self) is FrameMapper and only_resize(self.augmentations.augs)

    def __call__(self, image):
        """
        Args:
            image (ndarray, PIL.Image.Image or Tensor): uint8, (H, W, 3), BGR. Its memory may be
                reused when the call returns; that of a tensor, by its device's current stream.

        Returns:
            dict: "image" (uint8 tensor), and "height" and "width" of ``image``.

        Raises:
            TypeError, ValueError: it is not such a picture.
        """
        if isinstance(image, torch.Tensor) and self.takes_tensors:
            return self._map_tensor(image)
        image = as_frame(image)
        if self.image_format == "RGB":
            image = image[:, :, ::-1] if cv2 is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        return self._augment(image)

    def _augment(self, image):
        """:meth:`__call__` for an image in the model's format."""
        height, width = image.shape[:2]
        if only_resize(self.augmentations.augs):
            self.transforms = resize_transforms(self.augmentations.augs, (height, width))
            for transform in self._resizes():
                image = transform.apply_image(image)
        else:
            augmented = T.AugInput(image)
            self.transforms = self.augmentations(augmented)
            image = augmented.image
        self.scale = image.shape[0] / height
        return {"image": _planes(image), "height": height, "width": width}

    def _map_tensor(self, image):
        height, width = image.shape[:2]
        self.transforms = resize_transforms(self.augmentations.augs, (height, width))
        image = image.permute(2, 0, 1)
        if self.image_format == "RGB":
            image = image.flip(0)
        for transform in self._resizes():
            image = resize_picture(image, (transform.new_h, transform.new_w))
        self.scale = image.shape[1] / height
        image = image.clone(memory_format=torch.contiguous_format)
        return {"image": image, "height": height, "width": width}

    def _resizes(self):
        """
        Returns the ``transforms`` that change a picture. (Pillow takes milliseconds for others,
        too.)
        """
        return [
            x
            for x in self.transforms
            if isinstance(x, T.ResizeTransform) and (x.h, x.w) != (x.new_h, x.new_w)
        ]


def _planes(image):
    """Copies an array (H, W, C) to a Tensor (C, H, W)."""
    if cv2 is None:
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    planes = np.empty((image.shape[2], *image.shape[:2]), image.dtype)
    # Much faster than the transposing copies of NumPy and PyTorch.
    cv2.split(image, list(planes))
    return torch.from_numpy(planes)
