"""Suppression as a fixed point against torchvision's greedy loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms
from torchvision.ops import nms as torchvision_nms

from blockcopy_d2.modeling.fixed_shape.nms import nms


@st.composite
def scenes(draw):
    """Boxes on a coarse grid, so that duplicates, ties of the overlap and empty boxes occur."""
    number = draw(st.integers(1, 60))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    extent = draw(st.sampled_from([3, 8, 40]))
    corners = torch.randint(extent, (number, 2, 2), generator=generator).float()
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    return boxes, draw(st.sampled_from([0.25, 0.5, 0.7])), generator


@settings(deadline=None, max_examples=60)
@given(scenes())
def test_keeps_what_torchvision_keeps(scene):
    boxes, threshold, _ = scene
    scores = torch.linspace(1, 0, len(boxes))
    keep = nms(boxes[None], torch.ones(1, len(boxes), dtype=torch.bool), threshold)[0]
    assert keep.nonzero()[:, 0].tolist() == torchvision_nms(boxes, scores, threshold).tolist()


@settings(deadline=None, max_examples=40)
@given(scenes())
def test_keeps_what_torchvision_keeps_of_each_label(scene):
    boxes, threshold, generator = scene
    # Offsets between labels must not round: coordinates are small integers.
    labels = torch.randint(3, (len(boxes),), generator=generator)
    valid = torch.rand(len(boxes), generator=generator) > 0.2
    scores = torch.linspace(1, 0, len(boxes))
    keep = nms(boxes[None], valid[None], threshold, labels[None])[0]
    index = valid.nonzero()[:, 0]
    want = batched_nms(boxes[index], scores[index], labels[index], threshold)
    assert keep.nonzero()[:, 0].tolist() == index[want].tolist()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_invalid_boxes_take_no_part(value):
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 9]])
    boxes[0] = value
    keep = nms(boxes[None], torch.tensor([[False, True, True]]), 0.5)
    assert keep.tolist() == [[False, True, False]]


def test_groups_do_not_suppress_each_other():
    boxes = torch.tensor([0.0, 0, 10, 10]).expand(3, 2, 4)
    keep = nms(boxes, torch.ones(3, 2, dtype=torch.bool), 0.5)
    assert keep.tolist() == [[True, False]] * 3
