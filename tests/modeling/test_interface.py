"""An accelerated model has the interface of the model it wraps."""

import copy
import io

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.modeling import GeneralizedRCNN, GeneralizedRCNNWithTTA
from detectron2.structures import Boxes, Instances

import blockcopy_d2
from blockcopy_d2.modeling import BlockCopyVideoModel
from tests.engine.test_acceleration import assert_same, build_stock, frames

FAMILIES = ["Mask R-CNN", "RetinaNet", "lazy FCOS", "PanopticFPN", "SemanticSegmentor"]


def accelerate(stock, **options):
    options = {"policy": "AllBlocks", **options}
    return blockcopy_d2.accelerate(copy.deepcopy(stock), block_size=32, **options)


@pytest.fixture(scope="module")
def rcnn():
    stock = build_stock("Mask R-CNN").requires_grad_(False)
    return stock, accelerate(stock)


def video(number, video_id):
    for index, inputs in enumerate(frames(number)):
        yield {**inputs, "video_id": video_id, "frame_index": index}


@pytest.mark.parametrize("family", FAMILIES)
def test_all_names_of_the_model_and_its_modules(family):
    stock = build_stock(family)
    model = accelerate(stock)
    assert isinstance(model, type(stock)) and isinstance(model, BlockCopyVideoModel)
    assert type(model) is BlockCopyVideoModel
    for path, module in stock.named_modules():
        found = model.get_submodule(path)
        missing = [name for name in dir(module) if not hasattr(found, name)]
        assert not missing, path
    keys = [key for key in model.state_dict() if not key.startswith("policy.")]
    assert keys == list(stock.state_dict())
    with pytest.raises(
        AttributeError, match=f"BlockCopyVideoModel.*absent.*{type(stock).__name__}"
    ):
        _ = model.absent


@pytest.mark.parametrize("family", ["RetinaNet", "lazy FCOS"])
def test_a_dense_detector_step_by_step(family):
    stock = build_stock(family).requires_grad_(False)
    model = accelerate(stock)
    assert model.num_classes == stock.num_classes
    inputs = list(frames(2))
    found = []
    for m in (stock, model):
        images = m.preprocess_image(inputs)
        features = m.backbone(images.tensor)
        features = [features[name] for name in m.head_in_features]
        results = m.forward_inference(images, features, m.head(features))
        found.append([{"instances": x} for x in results])
    for expected, results in zip(*found, strict=True):
        assert_same(expected, results, tolerance=1e-6)


def test_a_generalized_rcnn_step_by_step(rcnn):
    inputs = list(frames(2))
    found = []
    for m in rcnn:
        assert (
            m.input_format == "BGR" and m.device.type == "cpu" and m.pixel_mean.shape == (3, 1, 1)
        )
        images = m.preprocess_image(inputs)
        features = m.backbone(images.tensor)
        proposals, _ = m.proposal_generator(images, features)
        results, _ = m.roi_heads(images, features, proposals)
        results = m._postprocess(results, inputs, images.image_sizes)
        found.append(results)
    for expected, results in zip(*found, strict=True):
        assert_same(expected, results, tolerance=1e-6)


@pytest.mark.parametrize("family", ["Mask R-CNN", "PanopticFPN"])
def test_inference_of_frames_is_the_next_frame(family):
    model = accelerate(build_stock(family), policy="FrameDifference")
    for first, second in zip(video(3, "one"), video(3, "two"), strict=True):
        (expected,) = model([first])
        (found,) = model.inference(batched_inputs=[second], do_postprocess=True)
        assert_same(expected, found, tolerance=0)
    assert len(model.streams) == 2
    with pytest.raises(ValueError, match="1 of 2 inputs"):
        model.inference([first, *frames(1)])


def test_other_calls_have_no_state():
    stock = build_stock("PanopticFPN").requires_grad_(False)
    model = accelerate(stock, policy="NoBlocks", motion="none")
    inputs = list(video(3, "clip"))
    (before,) = model(inputs[:1])
    results = [m.inference(inputs[1:], do_postprocess=False) for m in (stock, model)]
    for instances, sem_seg, others, other in zip(*results[0], *results[1], strict=True):
        expected = {"instances": instances, "sem_seg": sem_seg}
        assert_same(expected, {"instances": others, "sem_seg": other}, tolerance=1e-6)
    assert len(model.streams) == 1
    # No block is executed: the output is that of the last frame.
    assert_same(before, model(inputs[1:2])[0], tolerance=0)


def test_wrong_arguments_are_refused_as_ever(rcnn):
    _, model = rcnn
    with pytest.raises(TypeError):
        model.inference()
    with pytest.raises(TypeError):
        model.inference([], None, True, 3)
    with pytest.raises(TypeError):
        model.inference(list(frames(1)), absent=True)


def test_methods_run_in_the_precision_of_the_model():
    model = accelerate(build_stock("Mask R-CNN"), amp=True)
    seen = []
    model.backbone.bottom_up.stem.conv1.register_forward_hook(lambda m, x, y: seen.append(y.dtype))
    inputs = list(frames(1))
    model(inputs)
    model.inference(inputs, do_postprocess=False)
    assert len(seen) == 2 and seen[0] == seen[1] == torch.bfloat16


def test_assigned_values_count_in_streams_too():
    model = accelerate(build_stock("RetinaNet"))
    first, second = video(2, "clip")
    assert len(model([first])[0]["instances"]) > 0
    model.test_score_thresh = 2.0
    assert model.base.test_score_thresh == 2.0
    assert len(model([second])[0]["instances"]) == 0


def test_test_time_augmentation(rcnn):
    stock, model = rcnn
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 4
    cfg.TEST.DETECTIONS_PER_IMAGE = 10
    cfg.TEST.AUG.MIN_SIZES = (64, 96)
    assert isinstance(model, GeneralizedRCNN)
    inputs = list(video(1, "augmented"))
    streams = len(model.streams)
    (expected,) = GeneralizedRCNNWithTTA(cfg, stock)(inputs)
    (found,) = GeneralizedRCNNWithTTA(cfg, model)(inputs)
    assert_same(expected, found, tolerance=1e-4)
    assert len(model.streams) == streams


class Collect(DatasetEvaluator):
    def reset(self):
        self.outputs = []

    def process(self, inputs, outputs):
        self.outputs += outputs

    def evaluate(self):
        return {"outputs": self.outputs}


def test_inference_on_dataset(rcnn):
    stock, model = rcnn
    loaders = [[[x] for x in video(7, "scored")] for _ in rcnn]
    results = [
        inference_on_dataset(m, loader, Collect())["outputs"]
        for m, loader in zip((stock, model), loaders, strict=True)
    ]
    for expected, found in zip(*results, strict=True):
        assert_same(expected, found, tolerance=1e-3)


def by_pickle(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle])
def test_a_copy_is_a_model_of_its_own(duplicate):
    model = accelerate(build_stock("Mask R-CNN"), policy="LearnedPolicy", target=0.4)
    inputs = list(video(2, "clip"))
    for x in inputs:
        model([x])
    twin = duplicate(model)
    assert type(twin) is BlockCopyVideoModel and isinstance(twin, GeneralizedRCNN)
    assert len(twin.streams) == 0 and len(model.streams) == 1
    assert twin.base.backbone is twin.backbone is not model.backbone
    assert twin.learner is not model.learner
    expected = twin.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]) and value.data_ptr() != expected[name].data_ptr()
    still = list(frames(1))
    before = model(still)[0]
    assert_same(before, twin(still)[0], tolerance=0)
    with torch.no_grad():
        for parameter in twin.roi_heads.parameters():
            parameter.zero_()
    assert_same(before, model(still)[0], tolerance=0)
    assert not twin([inputs[0]])[0]["instances"].scores.equal(before["instances"].scores)


def test_given_detections_of_a_stream_stay_stateless(rcnn):
    stock, model = rcnn
    (inputs,) = video(1, "given")
    given = Instances((96, 160))
    given.pred_boxes = Boxes(torch.tensor([[5.0, 6.0, 40.0, 50.0]]))
    given.pred_classes = torch.zeros(1, dtype=torch.int64)
    given.scores = torch.ones(1)
    results = [m.inference([inputs], detected_instances=[copy.deepcopy(given)])[0] for m in rcnn]
    assert_same(*results, tolerance=1e-6)
