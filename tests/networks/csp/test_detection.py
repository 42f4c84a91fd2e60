"""Detections of CSP from its maps, and targets from boxes: cases computed by hand."""

import math

import pytest
import torch
from detectron2.structures import Boxes, ImageList, Instances

from blockcopy_d2.networks.csp.meta_arch import decode_boxes
from blockcopy_d2.networks.csp.targets import center_targets
from tests.networks.csp.small import small_csp


def test_boxes_by_hand():
    # Pixel (row 1, column 2) of a map 4 pixels wide: its middle is at y = 4 * 1 + 2, x = 4 * 2 + 2.
    log_height = torch.full((12,), math.log(10.0))
    offset = torch.zeros(2, 12)
    cells = torch.tensor([6])
    boxes = decode_boxes(log_height, offset, cells, width=4, stride=4, aspect_ratio=0.41)
    # 40 high and 0.41 * 40 = 16.4 wide.
    expected = torch.tensor([[10 - 8.2, 6 - 20, 10 + 8.2, 6 + 20]])
    torch.testing.assert_close(boxes, expected)
    offset[:, 6] = torch.tensor([0.25, -0.5])  # 1 pixel down, 2 pixels left
    boxes = decode_boxes(log_height, offset, cells, width=4, stride=4, aspect_ratio=0.41)
    torch.testing.assert_close(boxes, expected + torch.tensor([[-2.0, 1, -2, 1]]))


@pytest.fixture(scope="module")
def model():
    return small_csp()


def detect(model, peaks, size=(64, 96), image_size=(60, 90)):
    """Detections of maps that are empty but for peaks {(row, column): (score, height)}."""
    shape = (1, 1, size[0] // 4, size[1] // 4)
    logits, log_height = torch.full(shape, -20.0), torch.zeros(shape)
    for (row, column), (score, height) in peaks.items():
        logits[0, 0, row, column] = math.log(score / (1 - score))
        log_height[0, 0, row, column] = math.log(height / 4)
    images = ImageList(torch.zeros(1, 3, *size), [image_size])
    offset = torch.zeros(1, 2, *shape[-2:])
    return model.forward_inference(images, None, (logits, log_height, offset))[0]


def test_scores_below_a_tenth_are_dropped_and_the_rest_is_sorted(model):
    peaks = {(8, 4): (0.3, 20), (8, 12): (0.9, 20), (8, 20): (0.09, 20)}
    instances = detect(model, peaks)
    torch.testing.assert_close(instances.scores, torch.tensor([0.9, 0.3]))
    assert instances.pred_classes.tolist() == [0, 0]
    centers = instances.pred_boxes.get_centers()
    torch.testing.assert_close(centers, torch.tensor([[50.0, 34.0], [18.0, 34.0]]))


def test_of_two_boxes_that_overlap_by_more_than_half_one_stays(model):
    # 40 high, 4 apart: IoU 36 / 44. 20 apart: IoU 20 / 60.
    assert len(detect(model, {(5, 12): (0.9, 40), (6, 12): (0.8, 40)})) == 1
    assert len(detect(model, {(5, 12): (0.9, 40), (10, 12): (0.8, 40)})) == 2


@pytest.mark.parametrize("last_pixel, end", [(False, 60), (True, 59)])
def test_boxes_end_at_the_border_of_the_image(last_pixel, end):
    model = small_csp("MODEL.BLOCKCOPY.CSP.LAST_PIXEL", str(last_pixel))
    instances = detect(model, {(14, 12): (0.9, 80)})
    expected = torch.tensor([[50 - 16.4, 18, 50 + 16.4, end]])
    torch.testing.assert_close(instances.pred_boxes.tensor, expected)
    assert instances.image_size == (60, 90)


def test_boxes_that_end_on_their_last_pixel_overlap_more():
    # 12 high and 4.92 wide, 4 apart: IoU 8 / 16; with the last pixel 9 / 17.
    peaks = {(5, 12): (0.9, 12), (6, 12): (0.8, 12)}
    assert len(detect(small_csp("MODEL.BLOCKCOPY.CSP.LAST_PIXEL", "False"), peaks)) == 2
    assert len(detect(small_csp("MODEL.BLOCKCOPY.CSP.LAST_PIXEL", "True"), peaks)) == 1


def test_only_the_candidates_of_highest_score_are_kept():
    model = small_csp("MODEL.BLOCKCOPY.CSP.TOPK_CANDIDATES_TEST", "3")
    peaks = {(2, 2 * i): (0.2 + 0.1 * i, 4) for i in range(6)}
    assert detect(model, peaks).scores.tolist() == pytest.approx([0.7, 0.6, 0.5])
    model = small_csp("TEST.DETECTIONS_PER_IMAGE", "2")
    assert detect(model, peaks).scores.tolist() == pytest.approx([0.7, 0.6])


def test_maps_that_are_not_finite_give_no_detections(model):
    shape = (1, 1, 16, 24)
    images = ImageList(torch.zeros(1, 3, 64, 96), [(64, 96)])
    for value in (torch.nan, torch.inf):
        log_height = torch.full(shape, value)
        predictions = (torch.full(shape, 5.0), log_height, torch.zeros(1, 2, 16, 24))
        assert len(model.forward_inference(images, None, predictions)[0]) == 0


def test_outputs_have_the_size_that_was_asked_for(model):
    inputs = {"image": torch.randint(0, 255, (3, 50, 70), dtype=torch.uint8)}
    with torch.no_grad():
        small = model([inputs])[0]["instances"]
        large = model([{**inputs, "height": 100, "width": 140}])[0]["instances"]
    assert small.image_size == (50, 70) and large.image_size == (100, 140)
    assert len(small) > 0
    torch.testing.assert_close(2 * small.pred_boxes.tensor, large.pred_boxes.tensor)


def test_targets_by_hand():
    # 40 high, 16 wide: 10 and 4 pixels of the map. Its centre, (x 33, y 25), is in column 8, row 6.
    targets = center_targets(torch.tensor([[25.0, 5.0, 41.0, 45.0]]), (16, 24), 4)
    assert targets.center.nonzero().tolist() == [[6, 8]]
    torch.testing.assert_close(targets.offset[:, 6, 8], torch.tensor([-0.25, -0.25]))
    expected = torch.zeros(16, 24, dtype=torch.bool)
    expected[4:9, 6:11] = True
    assert torch.equal(targets.near_center, expected)
    torch.testing.assert_close(targets.log_height[expected], torch.full((25,), math.log(10.0)))
    assert not targets.log_height[~expected].any()
    # The whole pixels within the box: columns 7 to 9, rows 2 to 10.
    assert (targets.closeness > 0).nonzero().amin(0).tolist() == [2, 7]
    assert (targets.closeness > 0).nonzero().amax(0).tolist() == [10, 9]
    assert targets.closeness[6, 8] == 1
    sigma_x, sigma_y = 0.15 * 4 + 0.35, 0.15 * 10 + 0.35
    expected = math.exp(-(1**2) / (2 * sigma_x**2) - 2**2 / (2 * sigma_y**2))
    assert targets.closeness[8, 9].item() == pytest.approx(expected)


def test_targets_of_no_box():
    targets = center_targets(torch.zeros(0, 4), (8, 8), 4)
    assert not targets.center.any() and not targets.near_center.any()
    assert not targets.closeness.any()
    degenerate = center_targets(torch.tensor([[5.0, 5.0, 5.0, 9.0]]), (8, 8), 4)
    assert not degenerate.center.any()


def test_decoding_the_targets_gives_the_boxes():
    boxes = torch.tensor([[20.0, 8.0, 36.4, 48.0], [60.0, 10.0, 68.2, 30.0]])
    targets = center_targets(boxes, (16, 24), 4)
    cells = targets.center.flatten().nonzero()[:, 0]
    decoded = decode_boxes(
        targets.log_height.flatten(),
        targets.offset.flatten(1),
        cells,
        width=24,
        stride=4,
        aspect_ratio=0.41,
    )
    torch.testing.assert_close(decoded.sort(dim=0)[0], boxes.sort(dim=0)[0])


def labelled(boxes, size=(64, 96)):
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes).view(-1, 4))
    instances.gt_classes = torch.zeros(len(instances.gt_boxes), dtype=torch.int64)
    return instances


def test_losses_by_hand(model):
    boxes = [[20.0, 8.0, 36.4, 48.0]]
    targets = center_targets(torch.tensor(boxes), (16, 24), 4)
    logits = torch.where(targets.center, 0.0, -30.0)[None, None]
    log_height = targets.log_height[None, None] + 0.5
    offset = targets.offset[None] + 2.0
    losses = model.forward_training(None, None, (logits, log_height, offset), [labelled(boxes)])
    # One centre of score 0.5: (1 - 0.5)^2 * -log(0.5); smooth L1 of 0.5 and, twice, of 2.
    assert losses["loss_center"].item() == pytest.approx(0.01 * 0.25 * math.log(2), rel=1e-5)
    assert losses["loss_height"].item() == pytest.approx(0.5 * 0.5**2, rel=1e-5)
    assert losses["loss_offset"].item() == pytest.approx(0.1 * 2 * 1.5, rel=1e-5)


def test_false_positives_count_less_close_to_a_centre(model):
    boxes = [[20.0, 8.0, 36.4, 48.0]]
    targets = center_targets(torch.tensor(boxes), (16, 24), 4)
    (row, column) = targets.center.nonzero()[0].tolist()
    losses = {}
    for name, pixel in {"close": (row + 1, column), "far": (row, column + 12)}.items():
        logits = torch.where(targets.center, 30.0, -30.0)[None, None]
        logits[0, 0, pixel[0], pixel[1]] = 0
        maps = (logits, targets.log_height[None, None], targets.offset[None])
        losses[name] = model.forward_training(None, None, maps, [labelled(boxes)])["loss_center"]
    assert losses["far"].item() == pytest.approx(0.01 * 0.25 * math.log(2), rel=1e-5)
    assert 0 < losses["close"] < 0.01 * losses["far"]


def test_training_reaches_every_weight():
    model = small_csp().train()
    images = [torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8) for _ in range(2)]
    gt = [labelled([[20.0, 8.0, 36.4, 48.0]]), labelled([])]
    losses = model([{"image": x, "instances": y} for x, y in zip(images, gt)])
    assert set(losses) == {"loss_center", "loss_height", "loss_offset"}
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
