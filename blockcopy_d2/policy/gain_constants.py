"""Constants of :class:`.ExpectedGain` that kernels share with their references."""

__all__ = [
    "AGE_POWER",
    "EDGE_FLOOR",
    "LEVEL_FLOOR",
    "LONG_WAIT",
    "MOST_SAVED",
    "OVERDUE_POWER",
    "PRICE_PULL",
    "PRICE_RATE",
    "SAVING_FRAMES",
    "VARIANCE_FLOOR",
]

# Steps of an edge that a difference counts where the output has none.
EDGE_FLOOR = 0.02
# The expected gain of a block counts times this power of its age: at the same features, gains fall
# with the root of the age, and their product with the age has the least mean error.
AGE_POWER = 0.5
# On average a block waits 1 / tau frames. After LONG_WAIT times as long its gain also counts times
# this power of how many times longer it has waited, so that none waits for ever.
LONG_WAIT, OVERDUE_POWER = 3.0, 4.0
# Below it all blocks are equal.
VARIANCE_FLOOR = 1e-12
# Means of features over a frame count as at least this much in its level.
LEVEL_FLOOR = 1e-6
# The price of a block follows the logarithm of how many blocks are worth it, and goes down as
# blocks are saved, so that it settles where as many are worth it as the target allows.
PRICE_RATE, PRICE_PULL = 0.5, 0.3
# A stream saves or owes at most this share of the blocks of all frames since its start, and of at
# most so many frames. So short clips, too, execute what the target says.
MOST_SAVED, SAVING_FRAMES = 0.02, 50
