"""
Hard cuts of a video, found on the device.

Shape shorthand: N streams, h x w policy resolution, P policy pixels per side of a block.
"""

from torch.nn import functional as F

__all__ = ["CELLS", "LEAST_CHANGE", "LEAST_UNEXPLAINED", "scene_cuts"]

# Cells along the side of a block.
CELLS = 4
# A cell has changed if its mean colour did by more than this share of the range of pixel values.
LEAST_CHANGE = 0.06

# At a cut, at least this part of the share of :func:`scene_cuts` has changed even from the last
# frame moved by the estimated motion. Measured by BlockMatching: one in five frames of DAVIS, whose
# cameras follow animals and cars, changes by 0.33 to 0.58 of the picture, but by 0.15 at most from
# the moved frame; another scene still changes by 0.21 at least (190 pairs), by DISFlow 0.37.
LEAST_UNEXPLAINED = 0.5


def scene_cuts(frame, previous, *, share, pixels_per_block, pixel_std, coverage):
    """
    Find the frames that show another scene than the last one: those where more than ``share`` of
    the picture has changed, judged by the mean colours of cells of a quarter of a block. Moving
    texture barely changes the mean of a cell; another scene does.

    Measured at blocks of 128, the largest share that changed between consecutive frames: 0.07 from
    a car at 15 frames a second (CamVid), 0.24 at a third of that rate, 0.04 in StreetClips and
    OpenCV's vtest.avi. The smallest between different scenes: 0.52; between frames of one drive
    3 seconds apart: 0.41.

    Args:
        frame, previous (Tensor): float (N, 3, h, w), normalized.
        share (float): in [0, 1].
        pixels_per_block (int): P.
        pixel_std (Tensor): float (3, 1, 1), deviations of the normalization.
        coverage (float): share of the h x w pixels that are image, not padding.

    Returns:
        Tensor: bool (N,). False where a frame is not finite.
    """
    change = F.avg_pool2d((frame - previous) * (pixel_std / 255), pixels_per_block // CELLS)
    change = change.abs().mean(dim=1)
    return (change > LEAST_CHANGE).float().mean(dim=(1, 2)) > share * coverage
