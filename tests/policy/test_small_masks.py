"""Errors of the IoU of two masks at policy resolution: the figures of docs/paper.md."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from blockcopy_d2.modeling.tasks import InstanceTask

SIZE, NUMBER = 128, 500


def ellipses(centers, height):
    """bool (n, SIZE, SIZE), half as wide as high; centers (n, 2) are y and x."""
    y, x = ((torch.arange(SIZE) + 0.5 - center[:, None]) for center in centers.unbind(1))
    return (y[:, :, None] * 2 / height) ** 2 + (x[:, None] * 4 / height) ** 2 <= 1


def observe(masks):
    """bool (n, 32, 32), as the policy sees masks in a picture of one block."""
    instances = Instances((SIZE, SIZE), pred_masks=masks)
    instances.pred_boxes = Boxes(torch.zeros(len(masks), 4))
    instances.scores, instances.pred_classes = torch.ones(2, len(masks))
    size = (SIZE, SIZE)
    return (
        InstanceTask(1)
        .observe({"instances": instances}, image_size=size, canvas_size=size, grid_shape=(1, 1))
        .masks
    )


def overlaps(masks, others):
    return (masks & others).sum((1, 2)) / (masks | others).sum((1, 2)).clamp(min=1)


def mean_error(height):
    generator = torch.Generator().manual_seed(0)
    at, by = torch.rand(2, NUMBER, 2, generator=generator) - 0.5
    before = ellipses(SIZE / 2 + 16 * at, height)
    after = ellipses(SIZE / 2 + 16 * at + by * height / 2, height)
    seen = overlaps(observe(before), observe(after))
    return (seen - overlaps(before, after)).abs().mean().item()


@pytest.mark.parametrize("height, error", [(8, 0.3), (16, 0.1), (32, 0.03), (64, 0.01)])
def test_masks_of_small_objects_are_coarse(height, error):
    assert mean_error(height) == pytest.approx(error, rel=0.2)
