"""
Networks other than Mask R-CNN as graphs: the results and the learning are those of frames run
operator by operator.
"""

import pytest
import torch
from detectron2.modeling import SemanticSegmentor

from blockcopy_d2.modeling.fixed_shape import (
    StaticCSP,
    StaticFCOS,
    StaticRCNN,
    StaticRetinaNet,
    StaticSegmentor,
    find_static_heads,
)
from tests.modeling.fixed_shape.models import SMALL_DENSE_DETECTOR
from tests.modeling.running.sides import assert_same_output, both, clip, sides
from tests.networks.csp.small import OPTS as SMALL_CSP
from tests.networks.mgan.small import CONFIG as MGAN_CONFIG
from tests.networks.mgan.small import OPTS as SMALL_MGAN
from tests.networks.test_semantic_networks import NETWORKS as SEMANTIC

BLOCKS = ("MODEL.BLOCKCOPY.BLOCK_SIZE", 64)
CSP = ("CityPersons/csp_R_50.yaml", *SMALL_CSP, "TEST.DETECTIONS_PER_IMAGE", 10, *BLOCKS)
DENSE_DETECTOR = (*SMALL_DENSE_DETECTOR, "MODEL.WEIGHTS", "", *BLOCKS)
FCOS = (*DENSE_DETECTOR, "MODEL.META_ARCHITECTURE", "small_fcos")
CASCADE = (
    "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64,
    "MODEL.PIXEL_STD", [58.0] * 3,
    "MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_HEADS.NUM_CLASSES", 3,
    "MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16,
    "MODEL.RPN.POST_NMS_TOPK_TEST", 50, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
    "TEST.DETECTIONS_PER_IMAGE", 5, "MODEL.WEIGHTS", "", *BLOCKS,
)  # fmt: skip
MGAN = (MGAN_CONFIG, *SMALL_MGAN, "TEST.DETECTIONS_PER_IMAGE", 10, "MODEL.WEIGHTS", "", *BLOCKS)
NETWORKS = {
    **{name: (*SEMANTIC[name], "MODEL.WEIGHTS", "", *BLOCKS) for name in SEMANTIC},
    "csp": CSP,
    "retinanet": DENSE_DETECTOR,
    "fcos": FCOS,
    "cascade": CASCADE,
    "mgan": MGAN,
}
HEADS = {
    "csp": StaticCSP,
    "retinanet": StaticRetinaNet,
    "fcos": StaticFCOS,
    "cascade": StaticRCNN,
    "mgan": StaticRCNN,
}
# These are deeper, or share a part of another's head: they have no operators of their own.
ALIKE = ("swiftnet-50", "deeplab")
LEARNING = ("MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY", 2, "MODEL.BLOCKCOPY.LEARNER.LR", 0.01)


@pytest.fixture(
    params=[pytest.param(x, marks=pytest.mark.slow if x in ALIKE else ()) for x in NETWORKS]
)
def network(request):
    return request.param


@pytest.mark.usefixtures("replayed_lessons")
def test_a_clip(folder, built, device, network):
    eager, graph = sides(folder, built, device, *LEARNING, network=NETWORKS[network])
    assert find_static_heads(graph.model.base) is HEADS.get(network, StaticSegmentor)
    executed = []
    for image in clip(device, 7):
        results = both(eager, graph, image)
        executed.append(results[1][0].executed)
    assert executed[0] == 1 and min(executed) < 1
    assert graph.stream.frames == eager.stream.frames == 7


@pytest.mark.parametrize(
    "network", ["swiftnet-18", "deeplab-global", "csp", "retinanet"], indirect=True
)
def test_padding_and_outputs_of_another_size(folder, built, device, network):
    """The output is scaled to the requested size, for any size of the input."""
    policy = ("MODEL.BLOCKCOPY.POLICY.NAME", "FrameDifference")
    pair = sides(folder, built, device, *policy, network=NETWORKS[network])
    for image in clip(device, 4, size=(100, 230)):
        inputs = {"image": image, "height": 150, "width": 345}
        expected, found = (side.model.step(inputs, side.stream) for side in pair)
        assert not hasattr(expected, "_graph") and hasattr(found, "_graph")
        assert torch.equal(found.grid.active, expected.grid.active)
        assert_same_output(expected, found)
    if "sem_seg" in found:
        assert found["sem_seg"].shape[1:] == (150, 345)
    else:
        assert found["instances"].image_size == (150, 345) and len(found["instances"])


@pytest.mark.parametrize("network", ["swiftnet-18", "csp"], indirect=True)
def test_a_result_outlives_its_frame_and_no_block_repeats_it(folder, built, device, network):
    policy = ("MODEL.BLOCKCOPY.POLICY.NAME", "NoBlocks")
    _, graph = sides(folder, built, device, *policy, network=NETWORKS[network])
    first, *others = clip(device, 3)
    early = graph.frame(first)[0]
    for image in others:
        later = graph.frame(image)[0]
        assert later.grid.is_empty
        for name, value in _tensors(later).items():
            assert torch.equal(value, _tensors(early)[name]), name
    graph.stream.reset()
    anew = graph.frame(others[0])[0]
    assert any(not torch.equal(x, _tensors(early)[name]) for name, x in _tensors(anew).items())
    assert all(torch.equal(x, _tensors(early)[name]) for name, x in _tensors(later).items())


def _tensors(result):
    if "sem_seg" in result:
        return {"sem_seg": result["sem_seg"]}
    instances = result["instances"]
    return {"boxes": instances.pred_boxes.tensor, "scores": instances.scores}


def test_a_subclass_may_compute_something_else(built, folder):
    _, graph = sides(folder, built, "cpu", network=NETWORKS["swiftnet-18"])

    class Other(SemanticSegmentor):
        pass

    base = graph.model.base
    try:
        base.__class__ = Other
        assert find_static_heads(base) is None
    finally:
        base.__class__ = SemanticSegmentor
