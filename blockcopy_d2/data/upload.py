"""
Sends pictures to a GPU: the thread that reads them sends them, and the thread that runs them takes
them, while the GPU runs earlier ones. No thread waits.

Shape shorthand: H x W pixels of a picture.
"""

import weakref

import numpy as np
import torch

__all__ = ["SentPicture", "Uploader"]


class Uploader:
    """
    Sends pictures from the host to a GPU, as bytes, through pinned memory and on a stream of their
    own. PyTorch's caching allocators manage both memories: a buffer is reused once it is released
    and work that reads it is done, which they track by events.
    """

    # Limit for pictures that callers hold from :meth:`copy`, since pinned memory cannot be swapped
    # out.
    MAX_PINNED_BYTES = 2**30

    def __init__(self, device):
        """
        Args:
            device (torch.device): device of the model. On another than CUDA a picture is just
                copied.
        """
        self.device = device
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        # Address of the copy -> copy.
        self._copies = weakref.WeakValueDictionary()

    def copy(self, picture):
        """
        Args:
            picture (ndarray): uint8 (H, W, 3).

        Returns:
            ndarray: a copy, which :meth:`send` need not copy again unless too many are held.
        """
        if (len(self._copies) + 1) * picture.nbytes > self.MAX_PINNED_BYTES:
            return np.array(picture, order="C")
        copy = self._pinned_copy(picture).numpy()
        # The tensor that owns the memory of the array and of all its views.
        self._copies[copy.ctypes.data] = copy.base
        return copy

    def send(self, picture, *, stays=False):
        """
        Args:
            picture (ndarray): uint8 (H, W, 3).
            stays (bool): the caller does not write to it before :meth:`SentPicture.wait` returns.
                By default it may do so once this call returns.

        Returns:
            SentPicture:
        """
        pinned = self._copies.get(picture.ctypes.data) if stays else None
        if pinned is None:
            pinned = self._pinned_copy(picture)
        if self._side is None:
            return SentPicture(pinned)
        with torch.cuda.stream(self._side):
            return SentPicture(pinned.to(self.device, non_blocking=True), from_host=True)

    def _pinned_copy(self, picture):
        if self._side is None:
            return torch.from_numpy(np.array(picture, order="C"))
        with torch.cuda.device(self.device):
            pinned = torch.empty(picture.shape, dtype=torch.uint8, pin_memory=True)
        # Takes any strides, and lets other threads run meanwhile.
        np.copyto(pinned.numpy(), picture)
        return pinned


class SentPicture:
    """
    A picture on its way, copied by the current stream of the thread that makes this object.

    Attributes:
        shape (torch.Size): H, W, 3.
    """

    def __init__(self, picture, *, from_host=False):
        """
        Args:
            picture (Tensor): uint8 (H, W, 3), written by the current stream.
            from_host (bool): whether it is copied from memory of the host.
        """
        self.shape, self._from_host = picture.shape, from_host
        self._picture, self._arrived = picture, None
        if picture.is_cuda:
            with torch.cuda.device(picture.device):
                self._arrived = torch.cuda.current_stream().record_event()

    def take(self):
        """
        Returns:
            Tensor: uint8 (H, W, 3), on its device. Later work on the current stream there waits for
            it; the host does not.
        """
        if self._arrived is not None:
            current = torch.cuda.current_stream(self._picture.device)
            current.wait_event(self._arrived)
            self._picture.record_stream(current)
        return self._picture

    def wait(self):
        """
        Wait until it is no longer read from memory of the host: a fraction of a millisecond after
        it was sent, since its copy waits for other copies only.
        """
        if self._from_host:
            self._arrived.synchronize()
