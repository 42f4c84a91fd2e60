"""StaticPanopticFPN has the results of Detectron2's PanopticFPN, on any device."""

import pytest
import torch
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.modeling.postprocessing import sem_seg_postprocess

from blockcopy_d2.modeling.fixed_shape import StaticPanopticFPN, find_static_heads
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
