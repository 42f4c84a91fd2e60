"""
Detectron2's region proposal network after its head, in fixed shapes.

Shape shorthand in this module:

    N: images of a batch
    A: anchors of a pixel
    R: proposals of an image
"""

from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.proposal_generator import RPN

from .proposals import find_proposals

__all__ = ["StaticRPN"]


class StaticRPN:
    """
    The proposals of an RPN. The first call with a FrameSizes puts anchors on the device: make it
    before a CUDA graph is captured.
    """

    def __init__(self, rpn):
        """
        Args:
            rpn (RPN): one that :meth:`supports` is true for.
        """
        self._rpn = rpn
        self._anchors = {}

    @staticmethod
    def supports(rpn):
        """
        Args:
            rpn (nn.Module): a proposal generator.

        Returns:
            bool: whether this class reproduces it.
        """
        return (
            type(rpn) is RPN
            and isinstance(rpn.anchor_generator, DefaultAnchorGenerator)
            and isinstance(rpn.box2box_transform, Box2BoxTransform)
        )

    def head(self, features):
        """
        Args:
            features (dict[str, Tensor]): the backbone's.

        Returns:
            tuple[list[Tensor], list[Tensor]]: outputs of the RPN's head.
        """
        return self._rpn.rpn_head([features[name] for name in self._rpn.in_features])

    def __call__(self, logits, deltas, sizes):
        """
        Args:
            logits (list[Tensor]): objectness of each level from the RPN head, (N, A, H, W).
            deltas (list[Tensor]): likewise, (N, 4 A, H, W).
            sizes (FrameSizes): sizes of the images, all alike.

        Returns:
            tuple[Tensor, Tensor]: see :func:`find_proposals`.
        """
        rpn = self._rpn
        key = (tuple(x.shape[2:] for x in logits), logits[0].device)
        if key not in self._anchors:
            self._anchors[key] = [x.tensor for x in rpn.anchor_generator(logits)]
        return find_proposals(
            logits,
            deltas,
            self._anchors[key],
            transform=rpn.box2box_transform,
            image_size=sizes.image_size,
            nms_threshold=rpn.nms_thresh,
            pre_nms_topk=rpn.pre_nms_topk[False],
            post_nms_topk=rpn.post_nms_topk[False],
            least_side=rpn.min_box_size,
        )
