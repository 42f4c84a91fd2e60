"""Anchors, boxes and attention of MGAN: cases computed by hand."""

import math

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from blockcopy_d2.networks.mgan.roi_heads import visible_masks
from tests.networks.mgan.small import small_mgan

SCALES = (4, 5.4, 7.2, 9.8, 13.2, 17.9, 24.2, 33, 44.1, 59.6, 80)


@pytest.fixture(scope="module")
def model():
    return small_mgan()


def published_anchors(rows, columns, stride=8, ratio=2.44):
    """Anchors that end on their last pixel, as that code base makes them, to ours."""
    anchors = []
    middle = (stride - 1) / 2
    for row in range(rows):
        for column in range(columns):
            for scale in SCALES:
                width = stride * scale / math.sqrt(ratio)
                height = stride * scale * math.sqrt(ratio)
                x1, x2 = (round(middle + sign * (width - 1) / 2) for sign in (-1, 1))
                y1, y2 = (round(middle + sign * (height - 1) / 2) for sign in (-1, 1))
                x, y = stride * column, stride * row
                anchors.append([x + x1, y + y1, x + x2 + 1, y + y2 + 1])
    return torch.tensor(anchors, dtype=torch.float32)


def test_anchors_are_those_of_the_publication(model):
    (anchors,) = model.proposal_generator.anchor_generator([torch.zeros(1, 16, 3, 5)])
    torch.testing.assert_close(anchors.tensor, published_anchors(3, 5))
    # Scale 4 by hand: 32 / sqrt(2.44) = 20.5 wide and 32 * sqrt(2.44) = 50.0 high, around (4, 4).
    assert anchors.tensor[0].tolist() == [-6, -21, 14, 29]
    assert model.proposal_generator.anchor_generator.num_anchors == [11]


def published_decode(box, deltas, weights):
    """Boxes that end on their last pixel: widths count one more, centres lie on pixels."""
    x1, y1, x2, y2 = box
    width, height = x2 - x1 + 1, y2 - y1 + 1
    dx, dy, dw, dh = (delta / weight for delta, weight in zip(deltas, weights))
    x, y = (x1 + x2) / 2 + dx * width, (y1 + y2) / 2 + dy * height
    width, height = width * math.exp(dw), height * math.exp(dh)
    return [x - width / 2 + 0.5, y - height / 2 + 0.5, x + width / 2 - 0.5, y + height / 2 - 0.5]


def test_box_widths_that_count_one_more_are_boxes_that_end_one_later(model):
    box, deltas = [10.0, 20.0, 29.0, 69.0], [0.1, -0.2, 0.3, 0.4]
    for coder, weights in (
        (model.proposal_generator.box2box_transform, (1, 1, 1, 1)),
        (model.roi_heads.box_predictor.box2box_transform, (10, 10, 5, 5)),
    ):
        ours = torch.tensor([[*box[:2], box[2] + 1, box[3] + 1]])
        decoded = coder.apply_deltas(torch.tensor([deltas]), ours)[0]
        expected = published_decode(box, deltas, weights)
        expected[2:] = [expected[2] + 1, expected[3] + 1]
        torch.testing.assert_close(decoded, torch.tensor(expected))


def test_regions_are_sampled_twice_per_cell_without_a_shift_of_half_a_pixel(model):
    # On a map that holds x, the mean of the samples of a cell is the x of its middle.
    ramp = torch.arange(32.0).expand(1, 16, 32, 32)
    boxes = Boxes(torch.tensor([[16.0, 40.0, 72.0, 152.0]]))
    pooled = model.roi_heads.box_pooler([ramp], [boxes])
    expected = 16 / 8 + (torch.arange(7) + 0.5) * (72 - 16) / 8 / 7
    torch.testing.assert_close(pooled[0, 0], expected.expand(7, 7))
    assert model.roi_heads.box_pooler.level_poolers[0].sampling_ratio == 2


def test_attention_multiplies_the_features(model):
    heads = model.roi_heads
    seen = {}

    def keep(module, args):
        seen["x"] = args[0].clone()

    handle = heads.box_head.register_forward_pre_hook(keep)
    features = {"conv5": torch.rand(1, 16, 16, 16)}
    proposals = Instances((128, 128), proposal_boxes=Boxes(torch.tensor([[8.0, 8, 64, 120]])))
    proposals.objectness_logits = torch.zeros(1)
    with torch.no_grad():
        heads(None, features, [proposals])
        handle.remove()
        pooled = heads.box_pooler([features["conv5"]], [proposals.proposal_boxes])
        mask = heads.attention(pooled).sigmoid()
    assert mask.shape == (1, 1, 7, 7) and mask.std() > 0
    torch.testing.assert_close(seen["x"], pooled * mask)


def test_masks_by_hand():
    regions = torch.tensor([[0.0, 0, 7, 14], [0.0, 0, 7, 14], [10, 10, 17, 17]])
    visible = torch.tensor([[0.0, 0, 7, 7], [3, 0, 20, 14], [0, 0, 5, 5]])
    masks = visible_masks(regions, visible, 7)
    # The upper half: rows with their middle, at 2 * row + 1, above 7; then four of seven columns.
    assert masks[0, :3].all() and not masks[0, 3:].any()
    assert masks[1, :, 3:].all() and not masks[1, :, :3].any()
    assert not masks[2].any()


def labelled(boxes, visible=None, size=(128, 160)):
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes).view(-1, 4))
    instances.gt_classes = torch.zeros(len(instances.gt_boxes), dtype=torch.int64)
    if visible is not None:
        instances.gt_visible_boxes = Boxes(torch.tensor(visible).view(-1, 4))
    return instances


def train(model, instances):
    images = [torch.randint(0, 255, (3, 128, 160), dtype=torch.uint8) for _ in instances]
    with EventStorage():
        return model([{"image": x, "instances": y} for x, y in zip(images, instances)])


def test_training_reaches_every_weight():
    model = small_mgan().train()
    box, visible = [[40.0, 20.0, 70.0, 95.0]], [[40.0, 20.0, 70.0, 50.0]]
    losses = train(model, [labelled(box, visible), labelled([])])
    assert set(losses) == {
        "loss_rpn_cls",
        "loss_rpn_loc",
        "loss_cls",
        "loss_box_reg",
        "loss_mask_attention",
    }
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_without_visible_boxes_there_is_no_mask_loss():
    losses = train(small_mgan().train(), [labelled([[40.0, 20.0, 70.0, 95.0]])])
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}


def test_mask_loss_by_hand(model):
    heads = model.roi_heads
    proposals = labelled([[0.0, 0, 70, 140], [0, 0, 70, 140]], [[0.0, 0, 70, 80], [0, 0, 0, 0]])
    proposals.proposal_boxes = proposals.gt_boxes
    proposals.gt_classes[1] = heads.num_classes  # background
    logits = torch.zeros(2, 1, 7, 7)
    logits[0, 0, :4] = 2.0
    loss = heads._mask_loss((logits,), (proposals,))
    # Rows 0 to 3 of the pedestrian show it and are taken as visible; rows 4 to 6 get 0.5.
    expected = 0.5 * (4 * -math.log(1 / (1 + math.exp(-2.0))) + 3 * math.log(2)) / 7
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_outputs_have_the_size_that_was_asked_for(model):
    inputs = {"image": torch.randint(0, 255, (3, 100, 150), dtype=torch.uint8)}
    with torch.no_grad():
        small = model([inputs])[0]["instances"]
        large = model([{**inputs, "height": 200, "width": 300}])[0]["instances"]
    assert small.image_size == (100, 150) and large.image_size == (200, 300)
    assert 0 < len(small) <= 100 and not small.pred_classes.any()
    torch.testing.assert_close(2 * small.pred_boxes.tensor, large.pred_boxes.tensor)
