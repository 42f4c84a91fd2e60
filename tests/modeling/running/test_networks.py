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
    StaticPanopticFPN,
    StaticProposalNetwork,
    StaticRCNN,
    StaticRetinaNet,
    StaticSegmentor,
    find_static_heads,
)
from tests.modeling.running.networks import NETWORKS
from tests.modeling.running.sides import assert_same_output, both, clip, sides

HEADS = {
    "csp": StaticCSP,
    "retinanet": StaticRetinaNet,
    "fcos": StaticFCOS,
    "cascade": StaticRCNN,
    "mgan": StaticRCNN,
    "keypoints": StaticRCNN,
    "proposals": StaticProposalNetwork,
    "panoptic": StaticPanopticFPN,
}
# These are deeper, or share heads: they have no operators of their own.
ALIKE = ("swiftnet-50", "deeplab", "cascade", "fcos")
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
