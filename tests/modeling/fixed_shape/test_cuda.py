"""StaticHeads on CUDA: they have Detectron2's results, never wait, and can be a CUDA graph."""

import copy

import pytest
import torch

from blockcopy_d2.modeling.fixed_shape import StaticRCNN, find_static_heads
from blockcopy_d2.policy import instance_block_gain, instance_information_gain, paint_output
from tests.modeling.fixed_shape.models import (
    assert_agree,
    run_dense_detector,
    run_detectron2,
    small_dense_detector,
    small_rcnn,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

VARIANTS = [
    {},
    {"agnostic": True},
    {"masks": False},
    {"pyramid": False},
    {"num_conv": 1},
    {"cascade": True},
    {"res5": True, "opts": ("MODEL.RPN.POST_NMS_TOPK_TEST", 40)},
    {"keypoints": True},
    {"num_classes": 80, "opts": ("MODEL.RPN.POST_NMS_TOPK_TEST", 1000)},
]
SIZE, OUTPUT = (410, 730), (820, 1460)


@pytest.fixture(autouse=True)
def exact_products():
    """Detectron2 and this package multiply in different orders: rounding must not matter."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def cuda_rcnn(**options):
    return small_rcnn(**options).to("cuda")


def to_dtype(frame, dtype):
    features = {name: x.to(dtype) for name, x in frame.features.items()}
    logits, deltas = ([x.to(dtype) for x in maps] for maps in (frame.logits, frame.deltas))
    return features, logits, deltas, frame.sizes


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_results_are_those_of_detectron2(options):
    model = cuda_rcnn(**options)
    heads = StaticRCNN(model)
    for output_size in (SIZE, OUTPUT):
        frame = run_detectron2(model, SIZE, num_images=2, output_size=output_size)
        for got, want in zip(heads(*frame.inputs).to_instances(), frame.instances, strict=True):
            assert_agree(got, want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near_detectron2(dtype):
    model = cuda_rcnn()
    frame = run_detectron2(model, SIZE)
    got = StaticRCNN(model)(*to_dtype(frame, dtype)).to_instances()[0]
    assert_agree(got, frame.instances[0], precise=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_host_never_waits_and_padding_is_neutral(dtype):
    model = cuda_rcnn()
    heads = StaticRCNN(model)
    frames = [run_detectron2(model, SIZE, seed=seed) for seed in (0, 1)]
    inputs = [to_dtype(frame, dtype) for frame in frames]
    heads(*inputs[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        current, previous = (heads(*x).of_policy() for x in inputs)
        painted = paint_output(current.masks, current.scores, current.classes, 3)
        gain = instance_information_gain(current, previous)
        block_gain = instance_block_gain(current, previous, frames[0].sizes.grid_shape)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert painted.max() > 0 and gain.max() > 0 and block_gain.max() > 0


def test_a_cuda_graph_replays_for_other_inputs():
    model = cuda_rcnn()
    heads = StaticRCNN(model)
    frames = [run_detectron2(model, SIZE, output_size=OUTPUT, seed=seed) for seed in range(3)]
    inputs = copy.deepcopy(frames[0].inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            heads(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        detections = heads(*inputs)
    counts = set()
    for frame in (*frames[1:], frames[0], frames[1]):
        for static, new in zip(inputs[:3], frame.inputs[:3], strict=True):
            pairs = zip(
                static.values() if isinstance(static, dict) else static,
                new.values() if isinstance(new, dict) else new,
                strict=True,
            )
            for to, source in pairs:
                to.copy_(source)
        graph.replay()
        got = detections.to_instances()[0]
        assert_agree(got, frame.instances[0])
        counts.add(round(got.scores.sum().item(), 4))
    assert len(counts) == 3


def test_replays_are_equal():
    model = cuda_rcnn()
    heads = StaticRCNN(model)
    inputs = to_dtype(run_detectron2(model, SIZE), torch.float16)
    first, second = (heads(*inputs).to_instances()[0] for _ in range(2))
    assert first.pred_boxes.tensor.equal(second.pred_boxes.tensor)
    assert first.scores.equal(second.scores)
    assert first.pred_masks.equal(second.pred_masks)


@pytest.fixture(params=[False, True], ids=["retinanet", "fcos"])
def dense_detector(request):
    return small_dense_detector(centerness=request.param).to("cuda")


def test_results_of_dense_detectors_are_those_of_detectron2(dense_detector):
    heads = find_static_heads(dense_detector)(dense_detector)
    for output_size in (SIZE, OUTPUT):
        options = {"num_images": 2, "output_size": output_size}
        inputs, expected = run_dense_detector(dense_detector, SIZE, **options)
        for got, want in zip(heads(*inputs).to_instances(), expected, strict=True):
            assert_agree(got, want)
    *outputs, sizes = inputs
    outputs = [[x.half() for x in maps] for maps in outputs]
    for got, want in zip(heads(*outputs, sizes).to_instances(), expected, strict=True):
        assert_agree(got, want, precise=False)


def test_a_cuda_graph_of_a_dense_detector_replays_for_other_inputs(dense_detector):
    heads = find_static_heads(dense_detector)(dense_detector)
    inputs, want = run_dense_detector(dense_detector, SIZE)
    *outputs, sizes = inputs
    static = copy.deepcopy(outputs)
    for _ in range(2):
        heads(*static, sizes)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        heads(*static, sizes)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        detections = heads(*static, sizes)
    mirrored = tuple([x.flip(3).contiguous() for x in maps] for maps in outputs)
    _, other = run_dense_detector(dense_detector, SIZE, outputs=mirrored)
    for new, expected in ((mirrored, other), (outputs, want)):
        for to, source in zip(sum(static, []), sum(new, []), strict=True):
            to.copy_(source)
        graph.replay()
        assert_agree(detections.to_instances()[0], expected[0])
