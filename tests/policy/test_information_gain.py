import pytest
import torch
from detectron2.structures import Boxes, pairwise_iou
from hypothesis import given, settings
from hypothesis import strategies as st

from blockcopy_d2.policy import (
    DetectionMasks,
    block_information_gain,
    information_gain,
    instance_block_gain,
    instance_information_gain,
    semantic_information_gain,
)

GRID = (2, 3)
SIZE = (64, 96)


def algorithm_1(current, previous):
    """The paper's Algorithm 1, word by word, for detections of several classes."""
    gain = torch.zeros(current.masks.shape[1:])
    processed = set()
    for i in range(len(current)):
        best_iou, best = 0.0, None
        for j in range(len(previous)):
            if current.classes[i] != previous.classes[j]:
                continue
            iou = overlap(current, i, previous, j)
            if iou > best_iou:
                best_iou, best = iou, j
        mask = current.masks[i]
        gain[mask] = gain[mask].clamp(min=(1 - best_iou) * current.scores[i].item())
        if best is not None:
            processed.add(best)
            mask = previous.masks[best]
            gain[mask] = gain[mask].clamp(min=(1 - best_iou) * previous.scores[best].item())
    for j in set(range(len(previous))) - processed:
        mask = previous.masks[j]
        gain[mask] = gain[mask].clamp(min=previous.scores[j].item())
    return gain


def overlap(current, i, previous, j):
    if current.boxes is not None:
        boxes = Boxes(current.boxes[i : i + 1]), Boxes(previous.boxes[j : j + 1])
        return pairwise_iou(*boxes).item()
    union = (current.masks[i] | previous.masks[j]).sum().item()
    return (current.masks[i] & previous.masks[j]).sum().item() / union if union else 0.0


def detections(generator, count, num_classes=2, boxes=False):
    """`count` rectangles with holes, some of them empty."""
    low = torch.rand(count, 2, generator=generator) * 0.8
    high = low + torch.rand(count, 2, generator=generator) * 0.6
    scale = torch.tensor(SIZE)
    low, high = (low * scale).round(), (high * scale).round().clamp(max=scale)
    rows, columns = torch.arange(SIZE[0])[:, None], torch.arange(SIZE[1])
    masks = torch.zeros(count, *SIZE, dtype=torch.bool)
    for mask, (y0, x0), (y1, x1) in zip(masks, low, high, strict=True):
        mask |= (rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1)
        if not boxes:
            mask &= torch.rand(SIZE, generator=generator) > 0.2
    return DetectionMasks(
        masks,
        torch.rand(count, generator=generator),
        torch.randint(num_classes, (count,), generator=generator),
        torch.cat([low.flip(1), high.flip(1)], dim=1) if boxes else None,
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    n=st.integers(0, 9),
    m=st.integers(0, 9),
    num_classes=st.integers(1, 3),
    boxes=st.booleans(),
)
def test_gain_is_algorithm_1(seed, n, m, num_classes, boxes):
    generator = torch.Generator().manual_seed(seed)
    current = detections(generator, n, num_classes, boxes)
    previous = detections(generator, m, num_classes, boxes)
    expected = algorithm_1(current, previous)
    gain = instance_information_gain(current, previous)
    torch.testing.assert_close(gain, expected)
    of_blocks = instance_block_gain(current, previous, GRID)
    assert torch.equal(of_blocks, block_information_gain(gain, GRID))


def test_an_unchanged_output_gains_nothing():
    current = detections(torch.Generator().manual_seed(0), 8)
    current.masks[:, :4, :4] = True
    assert instance_information_gain(current, current).count_nonzero() == 0


def test_several_detections_may_match_the_same_previous_one():
    masks = torch.zeros(3, *SIZE, dtype=torch.bool)
    masks[0, :10, :10] = True
    masks[1, :10, :5] = True
    masks[2, :10, :10] = True
    classes = torch.zeros(3, dtype=torch.int64)
    current = DetectionMasks(masks[:2], torch.tensor([0.8, 0.6]), classes[:2])
    previous = DetectionMasks(masks[2:], torch.tensor([0.9]), classes[2:])
    gain = instance_information_gain(current, previous)
    # IoU 1 and 0.5: the earlier instance changed as much as its least similar successor.
    torch.testing.assert_close(gain[0, 0], torch.tensor(0.45))
    torch.testing.assert_close(gain[0, 9], torch.tensor(0.45))


def test_another_class_is_another_object():
    mask = torch.zeros(1, *SIZE, dtype=torch.bool)
    mask[0, :8, :8] = True
    current = DetectionMasks(mask, torch.tensor([0.7]), torch.tensor([0]))
    previous = DetectionMasks(mask, torch.tensor([0.9]), torch.tensor([1]))
    gain = instance_information_gain(current, previous)
    assert gain.max() == torch.tensor(0.9)
    assert gain[8:].count_nonzero() == 0


def test_more_detections_than_a_byte_counts():
    generator = torch.Generator().manual_seed(1)
    current, previous = detections(generator, 200), detections(generator, 120)
    expected = algorithm_1(current, previous)
    torch.testing.assert_close(instance_information_gain(current, previous), expected)


def test_gain_that_is_not_finite_stays_so():
    current = detections(torch.Generator().manual_seed(0), 4)
    current.masks[2, 40:60, 40:50] = True
    current.scores[2] = torch.nan
    previous = detections(torch.Generator().manual_seed(1), 4)
    gain = instance_information_gain(current, previous)
    assert gain[40:60, 40:50].isnan().all()
    of_blocks = instance_block_gain(current, previous, GRID)
    assert of_blocks[1, 1].isnan()
    torch.testing.assert_close(of_blocks, block_information_gain(gain, GRID), equal_nan=True)


def test_areas_and_blocks_of_masks():
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[0] = True
    masks[1, 31:33, 64] = True
    found = DetectionMasks(masks, torch.ones(2), torch.zeros(2, dtype=torch.int64))
    assert found.areas.tolist() == [64 * 96, 2]
    assert found.touched_blocks[0].all()
    assert found.touched_blocks[1].nonzero().tolist() == [[0, 2], [1, 2]]


def test_blocks_of_masks_at_half_the_resolution():
    masks = torch.zeros(1, *SIZE, dtype=torch.bool)
    masks[0, 31:33, 64] = True
    found = DetectionMasks(
        masks, torch.ones(1), torch.zeros(1, dtype=torch.int64), pixels_per_block=16
    )
    assert found.areas.tolist() == [2]
    assert found.touched_blocks[0].nonzero().tolist() == [[1, 4], [2, 4]]


def test_masks_that_are_not_at_policy_resolution_are_refused():
    scores, classes = torch.ones(1), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="multiples of 32"):
        DetectionMasks(torch.zeros(1, 60, 96, dtype=torch.bool), scores, classes)
    with pytest.raises(ValueError, match="torch.bool"):
        DetectionMasks(torch.zeros(1, 64, 96), scores, classes)
    found = DetectionMasks(torch.zeros(1, *SIZE, dtype=torch.bool), scores, classes)
    with pytest.raises(ValueError, match="grid has"):
        instance_block_gain(found, found, (4, 3))


def test_semantic_gain_is_the_kl_divergence():
    logits = torch.randn(2, 5, *SIZE, generator=torch.Generator().manual_seed(0))
    current, previous = logits.softmax(dim=1)
    gain = semantic_information_gain(current, previous)
    distributions = (
        torch.distributions.Categorical(probs=p.permute(1, 2, 0)) for p in (current, previous)
    )
    expected = torch.distributions.kl_divergence(*distributions)
    torch.testing.assert_close(gain, expected, rtol=1e-4, atol=1e-5)
    assert semantic_information_gain(current, current).count_nonzero() == 0


def test_semantic_gain_of_certain_and_of_missing_outputs_is_finite():
    current, previous = torch.zeros(2, 3, 2, 2)
    current[0, 0], previous[1, 0] = 1, 1
    gain = semantic_information_gain(current, previous)
    assert gain[0].min() > 10
    assert torch.isfinite(gain).all()
    assert gain[1].count_nonzero() == 0


def test_gain_of_a_block_is_its_largest_pixel():
    gain = torch.zeros(*SIZE)
    gain[31, 95] = 0.5
    gain[32, 0] = 0.25
    assert block_information_gain(gain, GRID).tolist() == [[0, 0, 0.5], [0.25, 0, 0]]


def test_streams_of_a_batch_are_as_one_by_one():
    generator = torch.Generator().manual_seed(0)

    def frame(boxes):
        masks = torch.rand(3, 4, *SIZE, generator=generator) < 0.3
        masks[1] = False
        corners = torch.rand(3, 4, 2, generator=generator)
        sides = torch.rand(3, 4, 2, generator=generator)
        scores, classes = torch.rand(3, 4, generator=generator), torch.arange(12).view(3, 4) % 2
        boxes = torch.cat([corners, corners + sides], dim=2) if boxes else None
        return [masks, scores, classes, boxes]

    for boxes in (False, True):
        current, previous = frame(boxes), frame(boxes)
        together = instance_block_gain(DetectionMasks(*current), DetectionMasks(*previous), GRID)
        for n in range(3):
            pair = (
                DetectionMasks(*(None if x is None else x[n] for x in one))
                for one in (current, previous)
            )
            assert torch.equal(together[n], instance_block_gain(*pair, GRID))
        if boxes:
            iou = pairwise_iou(Boxes(current[3][0]), Boxes(previous[3][0]))
            pair = (DetectionMasks(*(x[0] for x in one)) for one in (current, previous))
            assert torch.equal(information_gain._box_iou(*pair), iou)
