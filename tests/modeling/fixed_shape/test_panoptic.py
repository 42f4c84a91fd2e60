"""StaticPanopticFPN has the results of Detectron2's PanopticFPN, on any device."""

import pytest
import torch
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import Instances

from blockcopy_d2.modeling.fixed_shape import StaticPanopticFPN, find_static_heads
from blockcopy_d2.modeling.fixed_shape.panoptic_merge import merge_panoptic
from tests.modeling.fixed_shape.models import assert_agree, run_detectron2, small_rcnn


@pytest.fixture(scope="module")
def model():
    model = small_rcnn(panoptic=True)
    model.combine_instances_score_thresh = 0.2
    model.combine_stuff_area_thresh = 50
    return model


@pytest.mark.parametrize("output_size", [(150, 251), (70, 110)])
@torch.no_grad()
def test_results_are_those_of_detectron2(model, output_size):
    assert find_static_heads(model) is StaticPanopticFPN
    frame = run_detectron2(model, (150, 251), num_images=2, output_size=output_size)
    logits, _ = model.sem_seg_head(frame.features, None)
    heads = StaticPanopticFPN(model)
    parts = heads.parts(heads(logits, *frame.inputs))
    assert list(parts) == ["sem_seg", "instances"]
    for n, got in enumerate(parts["instances"].to_instances()):
        want = frame.instances[n]
        assert_agree(got, want)
        sem_seg = sem_seg_postprocess(logits[n], (150, 251), *output_size)
        torch.testing.assert_close(parts["sem_seg"][n], sem_seg)
        output = heads.complete({"sem_seg": parts["sem_seg"][n], "instances": got})
        assert list(output) == ["sem_seg", "instances", "panoptic_seg"]
        segments, infos = output["panoptic_seg"]
        thresholds = (0.5, 50, 0.2)
        expected, others = combine_semantic_and_instance_outputs(
            want, sem_seg.argmax(dim=0), *thresholds
        )
        assert (segments != expected).float().mean() < 1e-3
        assert [x["category_id"] for x in infos] == [x["category_id"] for x in others]
        assert {x["isthing"] for x in infos} == {True, False} and len(segments.unique()) > 3


def test_a_picture_is_merged_when_it_is_read(model, monkeypatch):
    frame = run_detectron2(model, (64, 96))
    with torch.no_grad():
        logits, _ = model.sem_seg_head(frame.features, None)
    heads = StaticPanopticFPN(model)
    instances = heads(logits, *frame.inputs)[1].to_instances()[0]
    merged = []
    monkeypatch.setattr(heads, "_combine", lambda *parts: merged.append(parts))
    output = heads.complete({"sem_seg": logits[0], "instances": instances})
    assert "panoptic_seg" in output and output["instances"] is instances and not merged
    assert output["panoptic_seg"] is output["panoptic_seg"] and len(merged) == 1


def test_without_masks_nothing_can_be_merged(model, monkeypatch):
    monkeypatch.setattr(model.roi_heads, "mask_on", False)
    assert find_static_heads(model) is None


@pytest.mark.parametrize("seed", range(6))
def test_segments_are_merged_as_in_detectron2(seed):
    torch.manual_seed(seed)
    number, size = (0, 1, 12, 12, 30, 30)[seed], (40, 60)
    corners = torch.rand(number, 2) * torch.tensor(size) * 0.8
    sides = torch.rand(number, 2) * 30
    pixels = torch.stack(torch.meshgrid(*(torch.arange(x) for x in size), indexing="ij"), dim=-1)
    inside = (pixels >= corners[:, None, None]) & (pixels < (corners + sides)[:, None, None])
    masks = inside.all(dim=-1)
    masks[number // 2 :: 7] = False
    scores = torch.rand(number).sort(descending=True).values
    classes = torch.randint(4, (number,))
    labels = torch.randint(6, (4, 6)).repeat_interleave(10, 0).repeat_interleave(10, 1)
    instances = Instances(size, pred_masks=masks, scores=scores, pred_classes=classes)
    for overlap, area, score in ((0.5, 100, 0.3), (0.0, 0, 0.0), (1.0, 1, 0.5)):
        want, infos = combine_semantic_and_instance_outputs(instances, labels, overlap, area, score)
        options = {"overlap_threshold": overlap, "least_area": area, "least_score": score}
        got, found = merge_panoptic(masks, scores, classes, labels, 6, **options)
        assert got.dtype == want.dtype and got.equal(want)
        assert found == infos
