"""Rate, clock, shape of pixels and colours of a video."""

from dataclasses import dataclass
from fractions import Fraction

__all__ = ["VideoFormat"]


@dataclass(frozen=True)
class VideoFormat:
    """
    The header of a video, apart from its size. Colours have FFmpeg's numbers, as in PyAV; some of
    those mean "unspecified".

    Attributes:
        fps (Fraction): frames per second, on average.
        time_base (Fraction or None): seconds of a tick of its clock, finer than a frame; None for
            a folder of images.
        sample_aspect_ratio (Fraction or None): width of a pixel over its height, for the upright
            picture; None if the header does not say, which means 1.
        colorspace (int): AVCOL_SPC: 1 is BT.709, 2 unspecified, 5 and 6 are BT.601.
        color_primaries (int): AVCOL_PRI; 2 is unspecified.
        color_trc (int): AVCOL_TRC, the transfer function; 2 is unspecified.
        color_range (int): AVCOL_RANGE: 0 is unspecified, 1 limited, 2 full.
    """

    fps: Fraction
    time_base: Fraction | None = None
    sample_aspect_ratio: Fraction | None = None
    colorspace: int = 2
    color_primaries: int = 2
    color_trc: int = 2
    color_range: int = 0
