"""Outputs are computed when they are read, at any time, with the right masks."""

import pytest
import torch

from blockcopy_d2.modeling import read_whole
from blockcopy_d2.modeling.fixed_shape import detections
from blockcopy_d2.modeling.running.readout import CountForecast, SentCounts
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


@pytest.mark.parametrize("missing", [None, 1])
def test_masks_of_a_batch_are_pasted_together_where_all_are_asked_for(
    folder, built, device, pasted, missing
):
    opts = ("MODEL.BLOCKCOPY.POLICY.NAME", "AllBlocks")
    side = Side(folder, built, device, *opts, graph=True, learns=False)
    images = [next(clip(device, 1, seed=seed)) for seed in range(3)]
    height, width = images[0].shape[1:]
    inputs = [{"image": x, "height": height, "width": width} for x in images]
    expected = [side.model.step(x, side.model.init_state())["instances"] for x in inputs]
    wanted = [x.pred_masks.clone() for x in expected]
    pasted.clear()
    if missing is not None:
        inputs[missing] = None
    results = [x for x in side.model.step_batch(inputs, side.model.init_state(3)) if x is not None]
    read_whole(*results)
    assert pasted == [(5, height, width)]
    found = [result["instances"] for result in results]
    present = [n for n in range(3) if n != missing]
    for one, n in zip(found, present, strict=True):
        torch.testing.assert_close(one.pred_boxes.tensor, expected[n].pred_boxes.tensor)
        assert (one.pred_masks != wanted[n]).float().mean() < 1e-3 and one.pred_masks.any()
    # Changing the boxes of one does not change another's.
    before = found[1].pred_boxes.tensor.clone()
    found[0].pred_boxes.scale(2, 2)
    assert torch.equal(found[1].pred_boxes.tensor, before)
    read_whole(*results)
    assert len(pasted) == 1


@pytest.mark.parametrize("expected", [0, 3, 100])
def test_masks_are_pasted_before_their_number_is_known(
    folder, built, device, pasted, monkeypatch, expected
):
    """However many are expected, each detection has its mask."""
    opts = ("MODEL.BLOCKCOPY.POLICY.NAME", "AllBlocks")
    graph = Side(folder, built, device, *opts, graph=True)
    first, second = clip(device, 2)
    read_whole(graph.frame(first)[0])
    result = graph.frame(second)[0]
    wanted = result["instances"].pred_masks.clone()
    again = Side(folder, built, device, *opts, graph=True)
    again.frame(first)
    result = again.frame(second)[0]
    again.stream.graph._forecast.note(0, expected)
    waiting, wait = [], SentCounts.__getitem__
    monkeypatch.setattr(
        SentCounts, "__getitem__", lambda counts, n: waiting.append(len(pasted)) or wait(counts, n)
    )
    pasted.clear()
    read_whole(result)
    assert result["instances"].pred_masks.equal(wanted) and len(wanted) == 5
    # The expected masks are pasted first, and all of them again if there are more.
    assert waiting[0] == 1 and pasted == (
        [(2, 128, 256), (5, 128, 256)] if expected == 0 else [(5, 128, 256)]
    )


def test_a_few_more_detections_are_expected_than_there_were():
    forecast = CountForecast(2)
    assert forecast.most([0]) is None
    forecast.note(0, 40)
    assert forecast.most([0]) == 45 and forecast.most([0, 1]) is None
    forecast.note(1, 0)
    assert forecast.most([1]) == 2 and forecast.most([0, 1]) == 45
