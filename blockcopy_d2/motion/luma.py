"""
The bytes of luma pyramids, see pyramid.py: grey levels from 0 to :data:`BRIGHTEST`, and two values
for pixels without one.
"""

__all__ = ["BRIGHTEST", "NOT_FINITE", "OUTSIDE"]

BRIGHTEST = 253
# A pixel of a padded canvas beyond the image.
OUTSIDE = 254
# A pixel that covers one that is not finite.
NOT_FINITE = 255
