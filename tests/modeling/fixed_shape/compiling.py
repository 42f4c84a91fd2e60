"""Compiles every Triton kernel of the second stage and of the policy as a call on a GPU would: run
by test_compile.py in a process of its own, that does not interpret."""

import sys

import torch
from detectron2.modeling.box_regression import Box2BoxTransform, Box2BoxTransformLinear
from detectron2.modeling.poolers import ROIPooler

from blockcopy_d2.kernels.clock import DeviceClock
from blockcopy_d2.modeling.fixed_shape.triton_ops.box_inference import (
    candidate_scores_triton,
    fill_slots_triton,
)
from blockcopy_d2.modeling.fixed_shape.triton_ops.boxes import decode_boxes_triton
from blockcopy_d2.modeling.fixed_shape.triton_ops.dense_candidates import (
    pair_scores_triton,
    peak_scores_triton,
)
from blockcopy_d2.modeling.fixed_shape.triton_ops.mask_selection import select_masks_triton
from blockcopy_d2.modeling.fixed_shape.triton_ops.nms import nms_triton
from blockcopy_d2.modeling.fixed_shape.triton_ops.paste import (
    paste_masks_triton,
    sample_masks_triton,
)
from blockcopy_d2.modeling.fixed_shape.triton_ops.proposals import (
    decode_candidates_triton,
)
from blockcopy_d2.modeling.fixed_shape.triton_ops.ranking import (
    best_boxes_triton,
    best_candidates_triton,
    best_values_triton,
)
from blockcopy_d2.modeling.fixed_shape.triton_ops.roi_pooler import pool_regions_triton
from blockcopy_d2.modeling.fixed_shape.triton_ops.top_anchors import top_anchors_triton
from blockcopy_d2.policy.painting import paint_maximum_triton
from tests.kernels.compiling import compiling, report


def launch_all(dtype):
    transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    boxes, valid = torch.rand(5, 1000, 4), torch.ones(5, 1000, dtype=torch.bool)
    decode_boxes_triton(
        torch.randn(1, 1000, 41)[..., 9:].to(dtype), boxes[:1], transform, (512, 512)
    )
    nms_triton(boxes, valid, 0.7)
    nms_triton(torch.rand(1, 2048, 4), valid.new_ones(1, 2048), 0.5, torch.zeros(1, 2048).long())
    nms_triton(boxes[:, :40], valid[:, :40], 0.5)
    sides = [64 >> i for i in range(5)]
    logits = [torch.randn(1, 3, side, side).to(dtype) for side in sides]
    top_anchors_triton(logits, 1000)
    top_anchors_triton([torch.cat([x, x]) for x in logits], 1000)
    deltas = [torch.randn(1, 12, side, side).to(dtype) for side in sides]
    anchors = [torch.rand(3 * side**2, 4) for side in sides]
    index = torch.zeros(1, 5, 1000, dtype=torch.int64)
    candidates = torch.zeros(1, 5, 1000, dtype=dtype)
    decode_candidates_triton(deltas, anchors, index, candidates, transform, (512, 512), 0.0)
    points, linear = [x[::3].contiguous() for x in anchors], Box2BoxTransformLinear()
    sides_of_points = [x[:, :4].contiguous() for x in deltas]
    decode_candidates_triton(sides_of_points, points, index, candidates, linear, None, -torch.inf)
    for num_anchors, centres in ((9, None), (1, [x[:, :1] for x in logits])):
        classes = [torch.randn(1, num_anchors * 80, side, side).to(dtype) for side in sides]
        peak_scores_triton(classes, centres, 80, 0.05)
        pair_scores_triton(classes, centres, index, 80, 0.05)
    for side, levels in ((7, 4), (14, 4), (7, 1)):
        maps = [torch.randn(1, 256, 128 >> i, 128 >> i).to(dtype) for i in range(levels)]
        scales = [2.0 ** -(2 + i) for i in range(levels)]
        pool_regions_triton(ROIPooler(side, scales, 0, "ROIAlignV2"), maps, boxes[:1, :50])
    best_values_triton(torch.rand(1, 8000), 2048, -1.0)
    for sets in (1, 8):
        best_candidates_triton(torch.rand(1, 8000), torch.rand(1, 1000, sets, 4), 2048, -1.0)
    best_boxes_triton(
        torch.rand(1, 5000).to(dtype), boxes.view(1, 5000, 4), valid.view(1, 5000), 1000
    )
    class_logits = torch.randn(1, 1000, 41).to(dtype)[..., :9]
    for stages in (1, 3):
        finite = torch.ones(1, 1000, 8 if stages == 1 else 1).bool()
        candidate_scores_triton([class_logits] * stages, valid[:1], finite, 0.05)
    scores, classes = torch.rand(1, 2048), torch.zeros(1, 2048).long()
    best_boxes = torch.rand(1, 2048, 4)
    fill_slots_triton(scores > 0.5, best_boxes, scores, classes, (2.0, 2.0), (64, 96), 100)
    masks, count = torch.rand(1, 100, 28, 28), torch.ones(1, dtype=torch.int32)
    paste_masks_triton(masks, boxes[:1, :100], count, torch.zeros(1, 100, 64, 96).bool())
    paint_maximum_triton(torch.zeros(100, 64, 96).bool(), scores[0, :100], classes[0, :100], 8)
    select_masks_triton(torch.zeros(100, 784, 8, dtype=dtype), classes[0, :100])
    rows = torch.arange(32)
    sample_masks_triton(masks, boxes[:1, :100], count, rows, rows)
    DeviceClock(2, "cpu").mark(1)


if __name__ == "__main__":
    with compiling(int(sys.argv[1])) as compiled:
        for name in sys.argv[2:]:
            launch_all(getattr(torch, name))
    report(compiled)
