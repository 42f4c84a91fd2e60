"""
StreetClips: deterministic synthetic street clips in Cityscapes' own layout.

    python -m blockcopy_d2.data.streetclips --help
"""

from .clip import Clip
from .motion import FRAMES, LABELLED, RATE
from .writer import CITIES, write_split

__all__ = ["CITIES", "FRAMES", "LABELLED", "RATE", "Clip", "write_split"]
