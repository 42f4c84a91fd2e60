"""Converted checkpoints give what the published networks give with the same weights."""

import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes

from blockcopy_d2.checkpoint_conversion import MAPPINGS, convert_state_dict
from blockcopy_d2.modeling.fixed_shape import FrameSizes, StaticCSP
from blockcopy_d2.modeling.fixed_shape.roi_pooler import pool_regions
from tests.networks.checkpoints.published import PublishedCSP, PublishedMGAN, roi_align
from tests.networks.csp.small import small_csp
from tests.networks.mgan.small import small_mgan
from tests.sparse.networks import randomize


def converted(name, published, model):
    randomize(published)
    published.eval()
    state = convert_state_dict(MAPPINGS[name], published.state_dict(), model.state_dict())
    model.load_state_dict(state, strict=True)
    return published, model


def image(height, width):
    generator = torch.Generator().manual_seed(4)
    return torch.randint(0, 256, (3, height, width), generator=generator).float()


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def assert_same(instances, scores, boxes):
    """The same detections; those of all but equal scores may come in any order."""
    found = torch.cat([instances.scores[:, None], instances.pred_boxes.tensor], dim=1)
    expected = torch.cat([scores[:, None], boxes], dim=1)
    found, expected = (x[x[:, 1:].sum(dim=1).argsort()] for x in (found, expected))
    assert_close(found, expected)


@pytest.fixture(scope="module")
def csp():
    torch.manual_seed(0)
    return converted("csp", PublishedCSP(), small_csp())


@pytest.fixture(scope="module", params=["mgan", "mgan_leotju"])
def mgan(request):
    """Pedestron's MGAN and that of its authors' repository, each with the config of its mapping."""
    torch.manual_seed(0)
    published = PublishedMGAN(pedestron=request.param == "mgan")
    options = ["MODEL.RPN.PRE_NMS_TOPK_TEST", "12000", "MODEL.RPN.POST_NMS_TOPK_TEST", "2000"]
    model = small_mgan(*options, config_file=MAPPINGS[request.param].config_file)
    published, model = converted(request.param, published, model)
    # Deltas like those of a trained network: boxes stay in the image. All scores differ.
    with torch.no_grad():
        published.bbox_head["fc_cls"].weight.mul_(10)
        published.rpn_head["rpn_reg"].weight.mul_(0.02)
        published.bbox_head["fc_reg"].weight.mul_(0.02)
    state = convert_state_dict(MAPPINGS["mgan"], published.state_dict(), model.state_dict())
    model.load_state_dict(state, strict=True)
    return published, model


@torch.no_grad()
def test_csp_maps(csp):
    published, model = csp
    x = image(64, 96)
    images = model.preprocess_image([{"image": x}])
    found = model.head([model.backbone(images.tensor)["p2"]])
    for one, other in zip(found, published.maps(x), strict=True):
        assert other.std() > 0
        assert_close(one, other)


@torch.no_grad()
def test_csp_detections(csp):
    published, model = csp
    x = image(96, 144)
    scores, boxes = published.detect(x)
    instances = model([{"image": x}])[0]["instances"]
    # Detectron2 drops boxes without area; the published code keeps them.
    nonempty = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    assert len(instances) > 3
    assert_same(instances, scores[nonempty], boxes[nonempty])
    size, heads = (96, 144), StaticCSP(model)
    static = heads(*published.maps(x), FrameSizes(size, size, size, (1, 2), 32))
    assert_same(static.to_instances()[0], scores[nonempty], boxes[nonempty])
    # Without the config key they would differ.
    model.last_pixel = False
    other = model([{"image": x}])[0]["instances"]
    model.last_pixel = True
    assert other.pred_boxes.tensor[:, 3].max() == 96 > boxes[:, 3].max()


@torch.no_grad()
def test_mgan_maps(mgan):
    published, model = mgan
    x = image(64, 96)
    images = model.preprocess_image([{"image": x}])
    features = model.backbone(images.tensor)["conv5"]
    expected = published.features(x)
    assert expected.std() > 0
    assert_close(features, expected)
    for (one,), other in zip(
        model.proposal_generator.rpn_head([features]), published.rpn(expected)
    ):
        assert_close(one, other)


@torch.no_grad()
def test_mgan_detections(mgan):
    published, model = mgan
    x = image(96, 128)
    scores, boxes = published.detect(x)
    instances = model([{"image": x}])[0]["instances"]
    assert len(instances) > 3
    # Where the next pixel starts, instead of on the last one.
    assert_same(instances, scores, boxes + torch.tensor([0.0, 0, 1, 1]))


@torch.no_grad()
def test_narrow_regions_of_mgan_stay_narrow(mgan):
    published, model = mgan
    features = published.features(image(96, 128))
    # Up to their last pixel: 3 pixels wide at the border, 20 x 2 pixels, and a large one.
    regions = torch.tensor([[0.0, 8, 2, 60], [30.2, 40.7, 49.2, 41.7], [16.5, 8.2, 71.5, 90.2]])
    expected = torch.stack([roi_align(features[0], region / 8, 1 / 8) for region in regions])
    boxes = regions + torch.tensor([0.0, 0, 1, 1])
    pooler = model.roi_heads.box_pooler
    assert_close(pooler([features], [Boxes(boxes)]), expected)
    assert_close(pool_regions(pooler, [features], boxes[None]), expected)
    # Detectron2's RoIAlign of the same name makes something else of the narrow ones.
    stock = ROIPooler(7, (1 / 8,), 2, "ROIAlign")([features], [Boxes(boxes)])
    assert ((stock - expected).abs().amax(dim=(1, 2, 3)) > 0.05).tolist() == [True, True, False]


@torch.no_grad()
def test_the_two_forms_of_mgan_are_two_networks(mgan):
    published, model = mgan
    x = image(96, 128)
    published.pedestron = not published.pedestron
    scores, _ = published.detect(x)
    published.pedestron = not published.pedestron
    found = model([{"image": x}])[0]["instances"].scores
    count = min(len(scores), len(found))
    assert (scores[:count] - found[:count]).abs().max() > 0.01
