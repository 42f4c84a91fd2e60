"""Outputs are computed when they are read, at any time, with the right masks."""

import pytest
import torch

from blockcopy_d2.modeling import read_whole
from blockcopy_d2.modeling.fixed_shape import detections
from tests.modeling.running.sides import Side, clip


@pytest.fixture
def pasted(monkeypatch):
    """The sizes of masks that were pasted, call by call."""
    sizes, paste = [], detections.paste_masks

    def watched(masks, boxes, count, out, **options):
        sizes.append(tuple(out.shape[1:]))
        paste(masks, boxes, count, out, **options)

    monkeypatch.setattr(detections, "paste_masks", watched)
    return sizes


def test_masks_are_pasted_when_they_are_read(folder, built, device, pasted):
    opts = ("MODEL.BLOCKCOPY.POLICY.NAME", "AllBlocks")
    graph = Side(folder, built, device, *opts, graph=True)
    results = [graph.frame(image)[0] for image in clip(device, 4)]
    instances = [result["instances"] for result in results]
    for one in instances:
        assert len(one) == len(one.scores) == len(one.pred_boxes) == 5 and one.has("pred_masks")
    assert not pasted
    again = Side(folder, built, device, *opts, graph=True)
    for index, image in enumerate(clip(device, 4)):
        expected = again.frame(image)[0]["instances"].pred_masks
        found = instances[index].pred_masks
        assert found.shape == (5, 128, 256) and found.dtype == torch.bool
        # Masks are those of their own frame, however many frames ran since.
        assert torch.equal(found, expected), index
    assert pasted == [(5, 128, 256)] * 8
    assert instances[0].pred_masks is instances[0].pred_masks and len(pasted) == 8


def test_the_whole_of_an_output_can_be_asked_for(folder, built, device, pasted):
    graph = Side(folder, built, device, graph=True)
    results = [graph.frame(image)[0] for image in clip(device, 2)]
    before = results[1].seconds
    for result in results:
        read_whole(result)
    read_whole(results[0].output)
    assert len(pasted) == 2
    assert set(results[1].seconds) == set(before)
    # Detectron2 takes outputs to the CPU.
    assert results[0]["instances"].to("cpu").pred_masks.any() and len(pasted) == 2
    read_whole({"sem_seg": torch.zeros(1), "panoptic_seg": (torch.zeros(1), [])})
