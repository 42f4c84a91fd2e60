"""
Hard cuts of a video, found on the device.

Shape shorthand: N streams, h x w policy resolution, P policy pixels per side of a block.
"""

from torch.nn import functional as F

__all__ = ["CELLS", "LEAST_CHANGE", "LEAST_UNEXPLAINED", "changed_share", "scene_cuts"]

# Cells along the side of a block.
CELLS = 4
# A cell has changed if its mean colour did by more than this share of the range of pixel values.
LEAST_CHANGE = 0.06

# At a cut, at least this part of the share of :func:`scene_cuts` has changed even from the last
# frame moved by the estimated motion. A camera that follows an animal or a car changes up to half
# of the picture, but little of it from the moved frame; python -m benchmarks.scene_cuts.
LEAST_UNEXPLAINED = 0.5


def scene_cuts(frame, previous, *, share, pixels_per_block, pixel_std, coverage):
    """
    Find the frames that show another scene than the last one: those where more than ``share`` of
    the picture has changed, judged by the mean colours of cells of a quarter of a block. Moving
    texture barely changes the mean of a cell; another scene does.

    Args:
        frame, previous (Tensor): float (N, 3, h, w), normalized.
        share (float): in [0, 1].
        pixels_per_block (int): P.
        pixel_std (Tensor): float (3, 1, 1), deviations of the normalization.
        coverage (float): share of the h x w pixels that are image, not padding.

    Returns:
        Tensor: bool (N,). False where a frame is not finite.
    """
    options = {"pixels_per_block": pixels_per_block, "pixel_std": pixel_std}
    return changed_share(frame, previous, **options) > share * coverage


def changed_share(frame, previous, *, pixels_per_block, pixel_std):
    """
    Args:
        frame, previous, pixels_per_block, pixel_std: see :func:`scene_cuts`.

    Returns:
        Tensor: float32 (N,), share of the cells that have changed.
    """
    change = F.avg_pool2d((frame - previous) * (pixel_std / 255), pixels_per_block // CELLS)
    change = change.abs().mean(dim=1)
    return (change > LEAST_CHANGE).float().mean(dim=(1, 2))
