"""
Turns the pictures of a video into inputs of a model, on its device.

Shape shorthand: H x W pixels of a picture.
"""

import torch

from blockcopy_d2.data import SentPicture, Uploader

__all__ = ["FrameInputs"]


class FrameInputs:
    """
    Maps pictures to Detectron2's input dicts. A model on a GPU gets them sent there as bytes first,
    which another thread may do while the GPU runs earlier frames.

    Attributes:
        model (BlockCopyVideoModel):
        mapper (callable): maps a picture to an input dict, such as a :class:`FrameMapper`. With a
            true attribute ``takes_tensors`` it also takes tensors on the model's device.
    """

    def __init__(self, model, mapper):
        self.model, self.mapper = model, mapper
        self._uploader = None

    def __getstate__(self):
        # Memory on a GPU stays in this process.
        return {**vars(self), "_uploader": None}

    @property
    def reads_vectors(self):
        """bool: whether motion comes from the video's codec."""
        return self.model.motion is not None and self.model.motion.reads_vectors

    @property
    def sends(self):
        """bool: whether pictures go to a GPU before they are mapped."""
        return self._maps_tensors and self.model.device.type == "cuda"

    @property
    def uploader(self):
        """Uploader: the one to the model's device."""
        uploader, device = self._uploader, self.model.device
        if uploader is None or uploader.device != device:
            uploader = self._uploader = Uploader(device)
        return uploader

    @property
    def _maps_tensors(self):
        # A user's own mapper may not take tensors.
        return getattr(self.mapper, "takes_tensors", False)

    def send(self, picture, *, stays=False):
        """
        Args:
            picture (ndarray or Tensor): uint8 (H, W, 3), BGR.
            stays (bool): see :meth:`Uploader.send`.

        Returns:
            ndarray or SentPicture: a form that :meth:`map` takes.
        """
        if isinstance(picture, torch.Tensor):
            return SentPicture(picture)
        return self.uploader.send(picture, stays=stays) if self.sends else picture

    def map(self, picture, vectors=None):
        """
        Args:
            picture (ndarray, Tensor or SentPicture): uint8 (H, W, 3), BGR.
            vectors (FrameVectors or None): motion from the frame before to this one. Used if
                ``reads_vectors``.

        Returns:
            dict: the model's input.

        Raises:
            ValueError: the vectors are those of a frame of another size.
        """
        if isinstance(picture, SentPicture):
            picture = picture.take()
        if isinstance(picture, torch.Tensor) and not self._maps_tensors:
            picture = picture.cpu().numpy()
        inputs = self.mapper(picture)
        if vectors is not None and self.reads_vectors:
            size = tuple(picture.shape[:2])
            if vectors.size != size:
                raise ValueError(
                    f"Vectors of a frame of {vectors.size} pixels for one of {size}:"
                    " expected those of the frame as VideoFrames.read() gave it."
                )
            inputs["motion_vectors"] = vectors.field(
                inputs["image"].shape[-2:], self.model.motion.cell_size, self.mapper.transforms
            )
        return inputs
