"""
Luma pyramids, the only thing that estimators keep of a frame.

Level 0 has half of the input's resolution, and each level after it half of the last one's. Luma is
(first + 2 second + third channel) / 4, the same for BGR and RGB. Of another number of channels it
is their mean. It is averaged over the pixels that lie in the image, rounded, as uint8, see luma.py.

Shape shorthand in this module:

    N: streams
    C: channels of an image
    H, W: height and width of the canvas, in pixels of the network's input
    h, w: height and width of a level
"""

import dataclasses

import torch
from torch.nn import functional as F

from blockcopy_d2.kernels import triton_runs_on
from blockcopy_d2.kernels.device import on_device

from .luma import BRIGHTEST, NOT_FINITE, OUTSIDE

__all__ = ["NUM_LEVELS", "MotionFeatures", "luma_pyramid"]

NUM_LEVELS = 4


@dataclasses.dataclass
class MotionFeatures:
    """
    Features of a frame of N streams, which an estimator keeps until the next frame.

    Attributes:
        size: H, W of the canvas.
        levels: luma, uint8 (N, h, w) each, with h = ceil(H / 2), ceil(H / 4), ...
        codec: float32 (N, 2, GH, GW), vectors that came with the frames, NaN in the cells without
            one; None, where no frame came with any.
        without_codec: bool (N,), on the CPU: the streams whose frame came without any.
    """

    size: tuple
    levels: list
    codec: torch.Tensor | None = None
    without_codec: torch.Tensor | None = None

    @classmethod
    def empty(cls, size, *, streams=1, device=None):
        """
        Args:
            size (tuple[int, int]): H, W of the canvas.
            streams (int): N.
            device (torch.device or str): where the levels lie.

        Returns:
            MotionFeatures: those of streams without a frame. Motion from them is 0 everywhere.
        """
        levels, (height, width) = [], size
        for _ in range(NUM_LEVELS):
            height, width = -(-height // 2), -(-width // 2)
            shape = (streams, height, width)
            levels.append(torch.full(shape, NOT_FINITE, dtype=torch.uint8, device=device))
        return cls(tuple(size), levels)

    def clone(self):
        """Returns a copy with levels of its own. Vectors of a codec are never written to."""
        return dataclasses.replace(self, levels=[level.clone() for level in self.levels])

    def copy_(self, other):
        """Overwrites the levels in place; vectors of a codec are shared."""
        for level, source in zip(self.levels, other.levels, strict=True):
            level.copy_(source)
        self.codec, self.without_codec = other.codec, other.without_codec
        return self

    def reset(self, streams=slice(None)):
        """Forgets the frame of some streams, in place: motion from and to it is 0 everywhere.

        Args:
            streams (int, slice or bool Tensor (N,)): the streams. A tensor is never read on the
                host.
        """
        for level in self.levels:
            if isinstance(streams, torch.Tensor):
                level.masked_fill_(streams.view(-1, 1, 1), NOT_FINITE)
            else:
                level[streams] = NOT_FINITE
        return self


def luma_pyramid(images, image_sizes=None, *, out=None):
    """
    Args:
        images (Tensor): uint8 or float (N, C, H, W), from 0 to 255, before normalization.
        image_sizes (Tensor): int32 (N, 2), height and width of the image in the upper left of each
            canvas; None where images fill their canvas.
        out (MotionFeatures): overwritten, if given.

    Returns:
        MotionFeatures:
    """
    size = tuple(images.shape[-2:])
    if images.dim() != 4 or min(images.shape[1:]) < 1:
        raise ValueError(f"images have shape {tuple(images.shape)}: expected (N, C, H, W)")
    if images.shape[1] != 3:
        grey = images if images.shape[1] == 1 else images.float().mean(dim=1, keepdim=True)
        images = grey.expand(-1, 3, -1, -1)
    if out is None:
        out = MotionFeatures.empty(size, streams=len(images), device=images.device)
    elif out.size != size or len(out.levels[0]) != len(images):
        raise ValueError(
            f"features of {len(out.levels[0])} canvases of {out.size} pixels do not fit "
            f"{len(images)} of {size}"
        )
    out.codec = out.without_codec = None
    if triton_runs_on(images.device):
        from .triton_pyramid import pyramid_launch

        with on_device(images.device):
            pyramid_launch(images, image_sizes, out.levels)
    elif images.dtype == torch.uint8:
        _pyramid_of_bytes(images, image_sizes, out.levels)
    else:
        pyramid_reference(images, image_sizes, out.levels)
    return out


def pyramid_reference(images, image_sizes, levels):
    """Fills ``levels`` as the kernel does, in plain PyTorch."""
    first, second, third = images.float().unbind(1)
    luma = (first + 2 * second + third) / 4
    if image_sizes is None:
        mean = F.avg_pool2d(luma, 2, ceil_mode=True)
        levels[0].copy_(_encode(mean))
    else:
        rows, columns = (torch.arange(n, device=images.device) for n in images.shape[-2:])
        inside = (rows < image_sizes[:, :1])[:, :, None] & (columns < image_sizes[:, 1:])[:, None]
        total = F.avg_pool2d(luma.where(inside, 0), 2, ceil_mode=True)
        share = F.avg_pool2d(inside.float(), 2, ceil_mode=True)
        levels[0].copy_(_encode(total / share).where(share > 0, OUTSIDE))
    for fine, coarse in zip(levels, levels[1:]):
        usable = (fine < OUTSIDE).float()
        share = F.avg_pool2d(usable, 2, ceil_mode=True)
        mean = F.avg_pool2d(fine * usable, 2, ceil_mode=True) / share
        broken = F.max_pool2d((fine == NOT_FINITE).float(), 2, ceil_mode=True) > 0
        coarse.copy_(_encode(mean).where(share > 0, OUTSIDE).where(~broken, NOT_FINITE))


def _pyramid_of_bytes(images, image_sizes, levels):
    """
    Fills the levels for bytes with the same bits, in whole numbers and a fiftieth of the time.
    """
    sizes = [images.shape[-2:]] * len(images) if image_sizes is None else image_sizes.tolist()
    for stream, (height, width) in enumerate(sizes):
        first, second, third = images[stream, :, :height, :width].to(torch.int16)
        # Four times the luma of a pixel, and sixteen times the mean of four.
        total = _sums_of_four(torch.add(first, second, alpha=2).add_(third)).add_(8) >> 4
        total.clamp_(max=BRIGHTEST)
        for number, level in enumerate(levels):
            if number:
                total = _sums_of_four(total.to(torch.int16)).add_(2) >> 2
            rows, columns = total.shape
            level[stream].fill_(OUTSIDE)
            level[stream, :rows, :columns] = total


def _sums_of_four(pixels):
    """
    Args:
        pixels (Tensor): int16 (h, w), from 0 to 16383. Those beyond the border repeat their
            neighbours, so that the mean of four is that of the existing ones.

    Returns:
        Tensor: int32 (ceil(h / 2), ceil(w / 2)), of 2 x 2 pixels.
    """
    if pixels.shape[0] % 2:
        pixels = torch.cat([pixels, pixels[-1:]])
    if pixels.shape[1] % 2:
        pixels = torch.cat([pixels, pixels[:, -1:]], dim=1)
    # Two neighbours in a row are the two halves of 32 bits.
    pairs = (pixels[0::2] + pixels[1::2]).view(torch.int32)
    return (pairs & 0xFFFF).add_(pairs >> 16)


def _encode(luma):
    rounded = (luma + 0.5).floor_().clamp_(0, BRIGHTEST)
    return rounded.where(luma.isfinite(), NOT_FINITE)
