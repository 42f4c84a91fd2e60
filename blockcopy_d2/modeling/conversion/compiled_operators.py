"""Models that need Detectron2's compiled extension, which many installations lack."""

import importlib.util

from detectron2.layers import ROIAlignRotated
from detectron2.modeling.proposal_generator.rrpn import RRPN
from detectron2.modeling.roi_heads import RROIHeads

__all__ = ["check_compiled_operators"]


def check_compiled_operators(model):
    """
    Args:
        model (nn.Module):

    Raises:
        ImportError: the model has rotated boxes, for which this installation of Detectron2 lacks
            the operators. (Deformable convolutions cannot even be built without them.)
    """
    if importlib.util.find_spec("detectron2._C") is not None:
        return
    for module in model.modules():
        if isinstance(module, ROIAlignRotated | RRPN | RROIHeads):
            raise ImportError(
                f"{type(module).__name__} needs rotated boxes, which Detectron2 computes in its"
                " compiled extension detectron2._C; this installation has none. Build Detectron2"
                " from source, see its INSTALL.md."
            )
