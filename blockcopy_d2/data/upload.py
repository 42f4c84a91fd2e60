"""
Pictures on their way to a GPU: sent by the thread that reads them, taken by the one that runs them,
while the GPU runs what came before. No host waits.

Shape shorthand: H x W pixels of a picture.
"""

import numpy as np
import torch

__all__ = ["SentPicture", "Uploader"]


class Uploader:
    """
    Sends pictures from the host to a GPU, bytes as they are, through pinned memory and on a stream
    of their own. Both memories are PyTorch's caching allocators': a buffer serves another picture
    once the copy from it, or whatever reads it, is done, which they know by events.
    """

    def __init__(self, device):
        """
        Args:
            device (torch.device): of the model. On another than CUDA a picture is just copied.
        """
        self.device = device
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, picture):
        """
        Args:
            picture (ndarray): uint8 (H, W, 3). It may be written to when the call returns.

        Returns:
            SentPicture:
        """
        if self._side is None:
            return SentPicture(torch.from_numpy(np.array(picture, order="C")))
        with torch.cuda.stream(self._side):
            pinned = torch.empty(picture.shape, dtype=torch.uint8, pin_memory=True)
            # From any strides; other threads may run meanwhile.
            np.copyto(pinned.numpy(), picture)
            return SentPicture(pinned.to(self.device, non_blocking=True))


class SentPicture:
    """
    A picture that is on its way, by the current stream of the thread that makes this object.

    Attributes:
        shape (torch.Size): H, W, 3.
    """

    def __init__(self, picture):
        """
        Args:
            picture (Tensor): uint8 (H, W, 3), written by the current stream.
        """
        self.shape = picture.shape
        self._picture, self._arrived = picture, None
        if picture.is_cuda:
            with torch.cuda.device(picture.device):
                self._arrived = torch.cuda.current_stream().record_event()

    def take(self):
        """
        Returns:
            Tensor: uint8 (H, W, 3), on its device. What follows on the current stream there waits
            for it, the host does not.
        """
        if self._arrived is not None:
            current = torch.cuda.current_stream(self._picture.device)
            current.wait_event(self._arrived)
            self._picture.record_stream(current)
        return self._picture
