"""
Anchors as in the code base in which MGAN was published.

There a box ends on its last pixel and is x2 - x1 + 1 wide; Detectron2's ends where the next pixel
starts and is x2 - x1 wide. [x1, x2] there is [x1, x2 + 1) here: with that, widths, centres, the
deltas of boxes, RoIAlign's sampling points and IoU are the same in both. The remaining difference
is that it rounds anchors to whole pixels.
"""

from detectron2.modeling.anchor_generator import (
    ANCHOR_GENERATOR_REGISTRY,
    DefaultAnchorGenerator,
)

__all__ = ["WholePixelAnchorGenerator"]


@ANCHOR_GENERATOR_REGISTRY.register()
class WholePixelAnchorGenerator(DefaultAnchorGenerator):
    """
    Detectron2's anchors, with their borders rounded to whole pixels. The stride is even and
    MODEL.ANCHOR_GENERATOR.OFFSET 0.5, so that the middle of an anchor lies between two pixels.
    """

    def generate_cell_anchors(self, sizes, aspect_ratios):
        return super().generate_cell_anchors(sizes, aspect_ratios).round()
