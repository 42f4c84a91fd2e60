"""Each Triton kernel against its plain reference: on the GPU if there is one, else interpreted."""

import pytest
import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.modeling.box_regression import Box2BoxTransform, Box2BoxTransformLinear
from detectron2.modeling.poolers import ROIPooler

pytest.importorskip("triton")

from blockcopy_d2.modeling.fixed_shape.box_inference import (  # noqa: E402
    candidate_scores_reference,
    fill_slots_reference,
)
from blockcopy_d2.modeling.fixed_shape.boxes import decode_boxes_reference  # noqa: E402
from blockcopy_d2.modeling.fixed_shape.dense_candidates import (  # noqa: E402
    pair_scores_reference,
    peak_scores_reference,
)
from blockcopy_d2.modeling.fixed_shape.mask_selection import select_masks_reference  # noqa: E402
from blockcopy_d2.modeling.fixed_shape.nms import nms_reference  # noqa: E402
from blockcopy_d2.modeling.fixed_shape.paste import sample_masks_reference  # noqa: E402
from blockcopy_d2.modeling.fixed_shape.proposals import (  # noqa: E402
    decode_candidates_reference,
)
from blockcopy_d2.modeling.fixed_shape.ranking import (  # noqa: E402
    best_boxes_reference,
    best_candidates_reference,
    best_values_reference,
)
from blockcopy_d2.modeling.fixed_shape.roi_pooler import pool_regions_reference  # noqa: E402
from blockcopy_d2.modeling.fixed_shape.triton_ops import paste  # noqa: E402
from blockcopy_d2.modeling.fixed_shape.triton_ops.box_inference import (  # noqa: E402
    candidate_scores_triton,
    fill_slots_triton,
)
from blockcopy_d2.modeling.fixed_shape.triton_ops.boxes import decode_boxes_triton  # noqa: E402
from blockcopy_d2.modeling.fixed_shape.triton_ops.dense_candidates import (  # noqa: E402
    pair_scores_triton,
    peak_scores_triton,
)
from blockcopy_d2.modeling.fixed_shape.triton_ops.mask_selection import (  # noqa: E402
    select_masks_triton,
)
from blockcopy_d2.modeling.fixed_shape.triton_ops.nms import nms_triton  # noqa: E402
from blockcopy_d2.modeling.fixed_shape.triton_ops.paste import (  # noqa: E402
    paste_masks_triton,
    sample_masks_triton,
)
from blockcopy_d2.modeling.fixed_shape.triton_ops.proposals import (  # noqa: E402
    decode_candidates_triton,
)
from blockcopy_d2.modeling.fixed_shape.triton_ops.ranking import (  # noqa: E402
    best_boxes_triton,
    best_candidates_triton,
    best_values_triton,
)
from blockcopy_d2.modeling.fixed_shape.triton_ops.roi_pooler import pool_regions_triton  # noqa: E402
from blockcopy_d2.networks.mgan.roi_heads import NarrowROIPooler  # noqa: E402
from tests.kernels.far_memory import far_memory  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

TRANSFORM = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))


@pytest.fixture(autouse=True)
def on_device():
    with torch.device(DEVICE):
        yield


def random_boxes(*shape, size=(200, 300), smallest=1.0):
    height, width = size
    corners = torch.rand(*shape, 2) * torch.tensor([width - smallest, height - smallest])
    longest = torch.tensor([width, height]) - corners
    sides = smallest + (longest - smallest) * torch.rand(*shape, 2) ** 2
    return torch.cat([corners, corners + sides], dim=-1)


@pytest.mark.parametrize("num_sets", [1, 3])
def test_decode_boxes(num_sets):
    deltas = torch.randn(2, 70, 4 * num_sets + 2) * 3
    deltas[0, 3, 0] = torch.nan
    deltas[0, 4, 2] = torch.nan
    deltas[0, 5, 2] = torch.inf
    deltas[1, 6, 1] = -torch.inf
    deltas = deltas[..., : 4 * num_sets]
    boxes = random_boxes(2, 70)
    got, got_finite = decode_boxes_triton(deltas, boxes, TRANSFORM, (200, 300))
    want, want_finite = decode_boxes_reference(deltas, boxes, TRANSFORM, (200, 300))
    assert got_finite.equal(want_finite)
    assert not want_finite.all()
    torch.testing.assert_close(got[want_finite], want[want_finite], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("size", [1, 31, 64, 100])
@pytest.mark.parametrize("labelled", [False, True])
def test_nms(size, labelled):
    boxes = random_boxes(3, size, size=(60, 60))
    boxes[:, size // 2 :: 3] = boxes[:, : len(range(size // 2, size, 3))].clone()
    boxes[0, -1] = torch.nan
    boxes[1, 0, 2:] = boxes[1, 0, :2]
    valid = torch.rand(3, size) > 0.1
    valid[0, -1] = False
    labels = torch.randint(3, (3, size)) if labelled else None
    got = nms_triton(boxes, valid, 0.5, labels)
    assert got.equal(nms_reference(boxes, valid, 0.5, labels))


def test_nms_of_more_boxes_than_fit_in_registers():
    boxes = random_boxes(2, 150, size=(100, 100), smallest=20.0)
    valid = torch.rand(2, 150) > 0.1
    # A whole block without a box that takes part.
    valid[1, 64:96] = False
    got = nms_triton(boxes, valid, 0.6, largest_block=32)
    assert got.equal(nms_reference(boxes, valid, 0.6))
    assert got[:, 128:].any()


def test_nms_along_the_longest_chain():
    # Each box overlaps the next only: every second one stays, and each round decides just one.
    left = torch.arange(100.0)
    boxes = torch.stack([left, left * 0, left + 2, left * 0 + 1], dim=1)[None]
    keep = nms_triton(boxes, torch.ones(1, 100, dtype=torch.bool), 0.3)
    assert keep[0].tolist() == [True, False] * 50


@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
def test_best_values_among_many_that_are_none(share):
    values = torch.rand(2, 700)
    values[torch.rand(2, 700) > share] = -1.0
    values[0, :300] = -1.0
    values[1, 40:43] = values[1, 300]
    got, want = best_values_triton(values, 256, -1.0), best_values_reference(values, 256, -1.0)
    for one, other in zip(got, want):
        assert one.equal(other)


@pytest.mark.parametrize("size, k", [(1, 1), (300, 40), (300, 300)])
def test_best_boxes(size, k):
    values, boxes = torch.randint(20, (2, size)).half(), random_boxes(2, size)
    keep = torch.rand(2, size) > 0.4
    values[~keep] = boxes[~keep] = torch.nan
    values[1, ::5] = -torch.inf
    got, want = (
        function(values, boxes, keep, k) for function in (best_boxes_triton, best_boxes_reference)
    )
    assert got[0].equal(want[0]) and got[1].equal(want[1]) and torch.isfinite(got[0]).all()
    assert k < size or (want[1] == -torch.inf).any()


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("sets", [1, 3])
def test_best_candidates(sets, share):
    scores, boxes = torch.randint(9, (2, 120)).float(), random_boxes(2, 40, sets)
    none = torch.rand(2, 120) >= share
    scores[none] = -1.0
    if sets == 3:
        boxes.view(2, 120, 4)[none] = torch.nan
    got, want = (
        function(scores, boxes, 50, -1.0)
        for function in (best_candidates_triton, best_candidates_reference)
    )
    assert all(one.equal(other) for one, other in zip(got, want, strict=True))
    assert want[3].sum() == (scores >= 0).sum(1).clamp(max=50).sum()


@pytest.mark.parametrize("size", [1, 33, 300])
def test_best_values(size):
    values = torch.randint(size, (2, size)).float()
    values[0, ::3] = -torch.inf
    for k in (1, size // 2 + 1, size):
        got, want = best_values_triton(values, k), best_values_reference(values, k)
        assert got[0].equal(want[0]) and got[1].equal(want[1])


@pytest.mark.parametrize("sigmoid", [True, False])
@pytest.mark.parametrize("num_boxes, stages", [(1, 1), (5, 1), (1, 3)])
def test_candidate_scores(sigmoid, num_boxes, stages):
    logits = torch.randn(stages, 2, 30, 9).half() * 2
    logits[0, 0, 2, 1] = torch.nan
    logits[-1, 0, 3, 5] = torch.nan
    logits[0, 1, 4, 2] = torch.inf
    logits = list(logits[..., :6])
    usable = torch.rand(2, 30) > 0.1
    finite = torch.rand(2, 30, num_boxes) > 0.05
    args = (logits, usable, finite, 0.1)
    got = candidate_scores_triton(*args, sigmoid=sigmoid)
    want = candidate_scores_reference(*args, sigmoid=sigmoid)
    assert (got < 0).equal(want < 0) and (want < 0).any() and (want > 0.1).any()
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("num_slots", [3, 20, 70])
def test_fill_slots(num_slots):
    boxes = random_boxes(2, 50)
    # One is empty before scaling, one after clipping.
    boxes[0, 4, 2] = boxes[0, 4, 0]
    boxes[1, 2] = torch.tensor([10.0, 190, 20, 200])
    keep = torch.rand(2, 50) > 0.5
    keep[0, 4] = keep[1, 2] = True
    scores, classes = torch.rand(2, 50), torch.randint(8, (2, 50))
    args = (keep, boxes, scores, classes, (1.5, 0.5), (80, 400), num_slots)
    for got, want in zip(fill_slots_triton(*args), fill_slots_reference(*args), strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want)


def maps(channels, *, row=None):
    """Maps of three levels; with `row`, pixels lie that many channels apart."""
    for size in ((6, 5), (2, 5), (2, 1)):
        x = torch.randn(2, *size, row or channels)
        yield x[..., :channels].permute(0, 3, 1, 2)


@pytest.mark.parametrize("row", [None, 15])
@pytest.mark.parametrize("num_anchors", [1, 3])
@pytest.mark.parametrize("centred", [False, True])
def test_dense_scores(row, num_anchors, centred):
    logits = [x.half() * 2 for x in maps(4 * num_anchors, row=row)]
    centerness = [x * 2 for x in maps(num_anchors)] if centred else None
    logits[0][0, 1, 2] = torch.nan
    logits[1][1, 2, 0] = torch.inf
    args = (logits, centerness, 4, 0.6)
    got, want = peak_scores_triton(*args), peak_scores_reference(*args)
    torch.testing.assert_close(got, want)
    assert (want < 0).any() and (want > 0.6).any() and want.shape[2] == 30 * num_anchors
    # Entries beyond the last levels: their padding.
    index = torch.randint(30 * num_anchors, (2, 3, 17))
    args = (logits, centerness, index, 4, 0.6)
    got, want = pair_scores_triton(*args), pair_scores_reference(*args)
    torch.testing.assert_close(got, want)
    assert (want < 0).any() and (want > 0.6).any()


@pytest.mark.parametrize("normalized", [False, True])
def test_decode_candidates_of_one_stage_detectors(normalized):
    """A linear transform, and boxes that are not clipped."""
    anchors = [random_boxes(30), random_boxes(10), random_boxes(2)]
    deltas = [x.half() for x in maps(4)]
    deltas[0][0, 1] = torch.nan
    deltas[1][1, 0] = torch.inf
    index = torch.randint(30, (2, 3, 20))
    transform = Box2BoxTransformLinear(normalize_by_size=normalized)
    args = (deltas, anchors, index, torch.ones(2, 3, 20), transform, None, -torch.inf)
    (got, got_valid), (want, want_valid) = (
        decode_candidates_triton(*args),
        decode_candidates_reference(*args),
    )
    assert got_valid.equal(want_valid) and want_valid.any() and not want_valid[:, 0].all()
    torch.testing.assert_close(got[want_valid], want[want_valid], rtol=1e-5, atol=1e-4)
    assert (want[want_valid] < 0).any() == normalized


@pytest.mark.parametrize("row", [None, 15])
def test_decode_candidates(row):
    sizes = (90, 30, 6)
    anchors = [random_boxes(size, size=(150, 250)) for size in sizes]
    deltas = list(maps(12, row=row))
    deltas[0][0, 7] = torch.nan
    deltas[1][1, 3] = torch.nan
    # Entries beyond the last level: its padding.
    index = torch.stack([torch.randperm(90)[:20] % max(size, 12) for size in sizes])
    index = torch.stack([index, index.flip(1)])
    logits = torch.randn(2, 3, 20)
    logits[0, 1, 1] = torch.inf
    logits[1, 1, 2] = torch.nan
    args = (deltas, anchors, index, logits, TRANSFORM, (120, 240), 5.0)
    (got, got_valid), (want, want_valid) = (
        decode_candidates_triton(*args),
        decode_candidates_reference(*args),
    )
    assert got_valid.equal(want_valid)
    assert want_valid.any() and not want_valid[:, :2].all() and not want_valid[:, 2].all()
    torch.testing.assert_close(got[want_valid], want[want_valid], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "output_size, sampling_ratio, kind",
    [(7, 0, "ROIAlignV2"), (14, 0, "ROIAlignV2"), (7, 2, "ROIAlignV2"), (7, 0, "ROIAlign")],
)
def test_pool_regions(output_size, sampling_ratio, kind):
    scales = (1 / 4, 1 / 8, 1 / 16)
    pooler = ROIPooler(output_size, scales, sampling_ratio, kind, canonical_box_size=56)
    height, width = 100, 168
    maps = [
        torch.randn(2, 20, -(-height // s), -(-width // s)).contiguous(
            memory_format=torch.channels_last
        )
        for s in (4, 8, 16)
    ]
    boxes = random_boxes(2, 8, size=(height, width))
    boxes[0, 0] = torch.tensor([0, 0, width, height])
    boxes[0, 1] = 0
    boxes[0, 2] = torch.tensor([0, 10, width, 12.5])
    boxes[0, 3] = torch.tensor([width - 1.25, 0, width, height])
    boxes[0, 4] = torch.tensor([8, 8, 36, 36])
    got = pool_regions_triton(pooler, maps, boxes)
    assert got.is_contiguous(memory_format=torch.channels_last)
    want = pool_regions_reference(pooler, maps, boxes)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_pool_regions_of_one_level_in_half_precision():
    pooler = ROIPooler(7, (1 / 16,), 0, "ROIAlignV2")
    x = torch.randn(1, 24, 9, 13)
    boxes = random_boxes(1, 6, size=(140, 200))
    got = pool_regions_triton(pooler, [x.half()], boxes)
    assert got.dtype == torch.float16
    want = pool_regions_reference(pooler, [x.half().float()], boxes)
    torch.testing.assert_close(got.float(), want, rtol=1e-3, atol=1e-3)


def test_pool_regions_that_stay_narrow():
    pooler = NarrowROIPooler(7, 1 / 8, 2)
    x = torch.randn(1, 24, 12, 16)
    boxes = torch.tensor(
        [[[0.0, 8, 3, 61], [30.2, 40.7, 50.2, 42.7], [16, 8, 72, 90], [0, 0, 0, 0]]]
    )
    got = pool_regions_triton(pooler, [x], boxes)
    want = pool_regions_reference(pooler, [x], boxes)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_pool_regions_of_large_batches(tmp_path):
    """The third image begins 2^31 elements behind the first."""
    pooler = ROIPooler(2, (1 / 4,), 0, "ROIAlignV2")
    maps = far_memory(tmp_path, (3, 1024, 1024, 1024), torch.float16, DEVICE)
    maps = maps.permute(0, 3, 1, 2)
    maps[0, :, :2, :3] = maps[2, :, :2, :3] = torch.randn(1024, 2, 3)
    boxes = torch.tensor([0.0, 0, 8, 6]).expand(3, 1, 4)
    near, empty, far = pool_regions_triton(pooler, [maps], boxes)
    assert near.any() and not empty.any() and near.equal(far)


def test_pool_regions_never_reads_what_a_bin_does_not_touch():
    pooler = ROIPooler(7, (1 / 4,), 0, "ROIAlignV2")
    x = torch.full((1, 16, 30, 40), torch.nan)
    x[:, :, 9:20, 11:30] = 1.0
    # In pixels of the map, bins sample within [9.5, 19.5) x [11.5, 29.5) less half a pixel.
    boxes = torch.tensor([[[48.0, 40.0, 116.0, 78.0]]])
    assert (pool_regions_triton(pooler, [x], boxes) - 1).abs().max() < 1e-5


def masks_and_boxes():
    masks = torch.nn.functional.interpolate(torch.rand(2, 5, 4, 4), size=(28, 28), mode="bilinear")
    boxes = random_boxes(2, 5, size=(70, 130), smallest=2.0)
    boxes[0, 0] = torch.tensor([0, 0, 130, 70])
    boxes[0, 1] = torch.tensor([3.5, 60.25, 4.75, 70])
    return masks, boxes, torch.tensor([5, 2], dtype=torch.int32)


@pytest.mark.parametrize("most", [5, 4])
def test_paste_masks(most, monkeypatch):
    # Each takes several tiles.
    monkeypatch.setattr(paste, "_PROGRAMS_PER_MASK", 3)
    masks, boxes, count = masks_and_boxes()
    boxes[1, 2:] = 0
    got = torch.zeros(2, most, 70, 130, dtype=torch.bool)
    got[1, 2:] = True
    paste_masks_triton(masks, boxes, count, got)
    for image, filled in enumerate(count.tolist()):
        filled = min(filled, most)
        want = paste_masks_in_image(masks[image, :filled], boxes[image, :filled], (70, 130))
        assert (got[image, :filled] != want).sum() <= 2
        assert 0.005 < want.float().mean() < 0.95
        # Slots beyond the count keep what they held.
        assert got[image, filled:].all()


def test_sample_masks():
    masks, boxes, count = masks_and_boxes()
    rows = torch.cat([torch.arange(2, 70, 4), torch.tensor([-1, -1])])
    columns = torch.cat([torch.arange(1, 130, 3), torch.tensor([-1])])
    got = sample_masks_triton(masks, boxes, count, rows, columns)
    want = sample_masks_reference(masks, boxes, count, rows, columns)
    assert (got != want).sum() <= 1
    assert want[0].any() and not got[1, 2:].any()
    assert not got[:, :, -2:].any() and not got[..., -1].any()
    full = paste_masks_in_image(masks[0], boxes[0], (70, 130))
    assert (want[0, :, :-2, :-1] != full[:, rows[:-2]][..., columns[:-1]]).sum() <= 1


@pytest.mark.parametrize("regions, side, num_classes", [(5, 7, 3), (2, 14, 1), (0, 14, 3)])
def test_select_masks(regions, side, num_classes):
    logits = 3 * torch.randn(regions, side * side * 4, num_classes)
    classes = torch.randint(num_classes, (regions,))
    found, want = (f(logits, classes) for f in (select_masks_triton, select_masks_reference))
    assert found.shape == (regions, 2 * side, 2 * side)
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6)


def spread(tensors):
    """The same values with others in between."""
    return [
        torch.stack([x, ~x if x.dtype == torch.bool else x + 1], dim=-1)[..., 0] for x in tensors
    ]


def detections_and_places():
    masks, boxes = torch.rand(2, 6, 14, 14), random_boxes(2, 6)
    count = torch.tensor([6, 3], dtype=torch.int32)
    return masks, boxes, count, torch.arange(0, 70, 3), torch.arange(0, 80, 3)


def slots():
    scores = torch.rand(2, 40).sort(descending=True).values
    return torch.rand(2, 40) > 0.3, random_boxes(2, 40), scores, torch.randint(5, (2, 40))


def candidates_of_levels():
    maps = [torch.randn(2, 12, side, side + 1) for side in (5, 3)]
    anchors = [random_boxes(3 * x.shape[2] * x.shape[3]) for x in maps]
    return *maps, *anchors, torch.randint(36, (2, 2, 8)), torch.randn(2, 2, 8)


@pytest.mark.parametrize(
    "launch, inputs",
    [
        (sample_masks_triton, detections_and_places),
        (lambda *x: fill_slots_triton(*x, (1.0, 1.0), (200, 300), 10), slots),
        (lambda keep, boxes, *_: nms_triton(boxes, keep, 0.5), slots),
        (lambda keep, boxes, scores, _: best_boxes_triton(scores, boxes, keep, 7), slots),
        (
            lambda a, b, c, d, *x: decode_candidates_triton(
                [a, b], [c.contiguous(), d.contiguous()], *x, TRANSFORM, (200, 300), 0.0
            ),
            candidates_of_levels,
        ),
        (
            lambda a, b, c, d, index, _: pair_scores_triton([a, b], None, index, 4, 0.05),
            candidates_of_levels,
        ),
    ],
    ids=["sample", "fill", "nms", "best", "decode", "pairs"],
)
def test_inputs_of_any_strides(launch, inputs):
    tensors = inputs()
    wanted, found = launch(*tensors), launch(*spread(tensors))
    for want, got in zip(*(x if isinstance(x, tuple) else (x,) for x in (wanted, found))):
        assert torch.equal(got, want)
