"""Constants that kernels share with their references."""

__all__ = ["MASK_THRESHOLD", "NO_SCORE"]

# The score of a pair of a box and a class that is not a candidate.
NO_SCORE = -1.0
# The least probability of a pixel of a pasted mask, as in Detectron2.
MASK_THRESHOLD = 0.5
