"""Networks other than Mask R-CNN that run as graphs: configs and overrides that make them small."""

from tests.modeling.fixed_shape.models import SMALL_DENSE_DETECTOR
from tests.modeling.running.sides import BLOCK
from tests.networks.csp.small import OPTS as SMALL_CSP
from tests.networks.mgan.small import CONFIG as MGAN_CONFIG
from tests.networks.mgan.small import OPTS as SMALL_MGAN
from tests.networks.test_semantic_networks import NETWORKS as SEMANTIC

__all__ = ["NETWORKS"]

_BLOCKS = ("MODEL.BLOCKCOPY.BLOCK_SIZE", BLOCK)
_CSP = ("CityPersons/csp_R_50.yaml", *SMALL_CSP, "TEST.DETECTIONS_PER_IMAGE", 10, *_BLOCKS)
_DENSE_DETECTOR = (*SMALL_DENSE_DETECTOR, "MODEL.WEIGHTS", "", *_BLOCKS)
_FCOS = (*_DENSE_DETECTOR, "MODEL.META_ARCHITECTURE", "small_fcos")
_CASCADE = (
    "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64,
    "MODEL.PIXEL_STD", [58.0] * 3,
    "MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_HEADS.NUM_CLASSES", 3,
    "MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16,
    "MODEL.RPN.POST_NMS_TOPK_TEST", 50, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
    "TEST.DETECTIONS_PER_IMAGE", 5, "MODEL.WEIGHTS", "", *_BLOCKS,
)  # fmt: skip
_PANOPTIC = (
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml", *_CASCADE[1:],
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5,
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", 0.3,
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", 100,
)  # fmt: skip
_PROPOSALS = (
    "COCO-Detection/rpn_R_50_FPN_1x.yaml",
    "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64,
    "MODEL.PIXEL_STD", [58.0] * 3, "MODEL.FPN.OUT_CHANNELS", 16,
    "MODEL.RPN.PRE_NMS_TOPK_TEST", 100, "MODEL.RPN.POST_NMS_TOPK_TEST", 20,
    "MODEL.WEIGHTS", "", *_BLOCKS,
)  # fmt: skip
_KEYPOINTS = (
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml", *_CASCADE[1:],
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", (16,), "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 4,
)  # fmt: skip
_MGAN = (MGAN_CONFIG, *SMALL_MGAN, "TEST.DETECTIONS_PER_IMAGE", 10, "MODEL.WEIGHTS", "", *_BLOCKS)
NETWORKS = {
    **{name: (*SEMANTIC[name], "MODEL.WEIGHTS", "", *_BLOCKS) for name in SEMANTIC},
    "csp": _CSP,
    "retinanet": _DENSE_DETECTOR,
    "fcos": _FCOS,
    "cascade": _CASCADE,
    "mgan": _MGAN,
    "keypoints": _KEYPOINTS,
    "proposals": _PROPOSALS,
    "panoptic": _PANOPTIC,
}
