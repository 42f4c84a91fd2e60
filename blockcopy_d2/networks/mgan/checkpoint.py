"""
MGAN with VGG-16, of Pedestron (``configs/elephant/cityperson/mgan_vgg.py`` there) and of its
authors' repository (``city_cfgs/mgan_50_65.py``). Names and shapes of both are the same, so only
their source shows which form of attention the weights belong to.

Boxes of either code base end on their last pixel and count one more than x2 - x1; ours end where
the next pixel starts. The numbers that the network predicts mean the same in both.
"""

import dataclasses

from ..mapping import Mapping

__all__ = ["CHECKPOINTS"]

# The place of each convolution in torchvision's VGG-16; its fourth pool keeps its place there.
_PLACES = {1: (0, 2), 2: (5, 7), 3: (10, 12, 14), 4: (17, 19, 21), 5: (24, 26, 28)}
_VGG_16 = {
    f"conv{stage}_{number}": place
    for stage, places in _PLACES.items()
    for number, place in enumerate(places, start=1)
}

_PEDESTRON = Mapping(
    source="Pedestron's MGAN",
    config_file="CityPersons/mgan_VGG_16_pedestron.yaml",
    names=(
        *(
            (rf"backbone\.{name}\.(\w+)", rf"backbone.features.{place}.\1")
            for name, place in _VGG_16.items()
        ),
        (r"proposal_generator\.rpn_head\.conv\.(\w+)", r"rpn_head.rpn_conv.\1"),
        (r"proposal_generator\.rpn_head\.objectness_logits\.(\w+)", r"rpn_head.rpn_cls.\1"),
        (r"proposal_generator\.rpn_head\.anchor_deltas\.(\w+)", r"rpn_head.rpn_reg.\1"),
        (r"roi_heads\.attention\.conv1\.(\w+)", r"mgan_head.convs.0.conv.\1"),
        (r"roi_heads\.attention\.conv2\.(\w+)", r"mgan_head.convs.1.conv.\1"),
        (r"roi_heads\.attention\.predictor\.(\w+)", r"mgan_head.conv_logits.\1"),
        (r"roi_heads\.box_head\.fc1\.(\w+)", r"bbox_head.shared_fcs.0.\1"),
        (r"roi_heads\.box_head\.fc2\.(\w+)", r"bbox_head.shared_fcs.1.\1"),
        (r"roi_heads\.box_predictor\.cls_score\.(\w+)", r"bbox_head.fc_cls.\1"),
        (r"roi_heads\.box_predictor\.bbox_pred\.(\w+)", r"bbox_head.fc_reg.\1"),
    ),
    transforms=(
        # Background comes first there, last in Detectron2, which has no box for it either.
        (r"roi_heads\.box_predictor\.cls_score\.\w+", lambda x: x.roll(-1, dims=0)),
        (r"roi_heads\.box_predictor\.bbox_pred\.\w+", lambda x: x[4:]),
    ),
    settings=(("MODEL.BLOCKCOPY.MGAN.ATTENDED", "convolved"),),
)

# The authors' code since May 2020. Before that it was as Pedestron's.
_AUTHORS = dataclasses.replace(
    _PEDESTRON,
    source="the MGAN of its authors' repository (Leotju/MGAN)",
    config_file="CityPersons/mgan_VGG_16.yaml",
    settings=(("MODEL.BLOCKCOPY.MGAN.ATTENDED", "regions"),),
)

CHECKPOINTS = {"mgan": _PEDESTRON, "mgan_leotju": _AUTHORS}
