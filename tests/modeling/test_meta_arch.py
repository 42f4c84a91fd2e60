"""The video model on small versions of Detectron2's networks."""

import contextlib
import copy
import logging

import pytest
import torch
from detectron2.modeling import build_model

from blockcopy_d2.config import base_config
from blockcopy_d2.engine import load_config
from blockcopy_d2.modeling import BlockCopyVideoModel, VideoStream, meta_arch
from blockcopy_d2.modeling.running import learning, next_frame
from blockcopy_d2.policy import OnlineLearner
from blockcopy_d2.resources import config_path
from blockcopy_d2.sparse import BlockGrid, BlockSparseModule
from tests.sparse.networks import randomize

SMALL = [
    "MODEL.DEVICE", "cpu",
    "MODEL.WEIGHTS", "",
    "MODEL.RESNETS.DEPTH", "18",
    "MODEL.RESNETS.RES2_OUT_CHANNELS", "64",
    "MODEL.FPN.OUT_CHANNELS", "16",
    "MODEL.RPN.PRE_NMS_TOPK_TEST", "50",
    "MODEL.RPN.POST_NMS_TOPK_TEST", "20",
    "MODEL.ROI_BOX_HEAD.FC_DIM", "16",
    "MODEL.ROI_MASK_HEAD.CONV_DIM", "16",
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST", "50",
    "MODEL.ROI_HEADS.NUM_CLASSES", "4",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0",
    "MODEL.RETINANET.NUM_CLASSES", "4",
    "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", "32",
    "TEST.DETECTIONS_PER_IMAGE", "10",
    "MODEL.BLOCKCOPY.ENABLED", "True",
    "MODEL.BLOCKCOPY.BLOCK_SIZE", "64",
]  # fmt: skip
PANOPTIC = "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml"
NETWORKS = {
    "mask-rcnn": ["COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"],
    "retinanet": ["COCO-Detection/retinanet_R_50_FPN_1x.yaml"],
    "panoptic": [PANOPTIC],
    "semantic": [PANOPTIC, "MODEL.META_ARCHITECTURE", "SemanticSegmentor"],
}


@pytest.fixture(scope="module", params=NETWORKS)
def models(request):
    """The video model, and Detectron2's own with the same weights."""
    return build_pair(request.param)


@pytest.fixture(scope="module")
def mask_rcnn():
    return build_pair("mask-rcnn")[0]


def build_pair(name, *opts):
    path, *network_opts = NETWORKS[name]
    cfg = load_config(config_path(path), [*SMALL, *network_opts, *opts])
    torch.manual_seed(2)
    stock = build_model(base_config(cfg)).eval()
    randomize(stock.backbone)
    model = build_model(cfg)
    missing, unexpected = model.load_state_dict(stock.state_dict(), strict=False)
    assert not unexpected and all(key.startswith("policy.") for key in missing)
    return model, stock


def frames(number, size=(100, 180), **keys):
    generator = torch.Generator().manual_seed(3)
    still = torch.randint(0, 255, (3, *size), dtype=torch.uint8, generator=generator)
    inputs = []
    for index in range(number):
        image = still.clone()
        image[:, 20:60, 30 * index : 30 * index + 40] = 255
        inputs.append({"image": image, "height": 150, "width": 270, "frame_index": index, **keys})
    return inputs


def assert_same(expected, found, exact=True):
    assert expected.keys() == found.keys()
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-3, "atol": 1e-3}
    if "sem_seg" in expected:
        torch.testing.assert_close(found["sem_seg"], expected["sem_seg"], **tolerance)
    if "instances" in expected:
        first, second = expected["instances"], found["instances"]
        assert len(first) == len(second) > 0
        torch.testing.assert_close(second.scores, first.scores, **tolerance)
        torch.testing.assert_close(second.pred_boxes.tensor, first.pred_boxes.tensor, **tolerance)
        assert torch.equal(first.pred_classes, second.pred_classes)


def no_grid(model, result):
    return BlockGrid.empty(block_size=model.block_size, image_size=result.grid.image_size)


def test_state_dict_is_detectron2s_plus_the_policy(models):
    model, stock = models
    own = {key for key in model.state_dict() if not key.startswith("policy.")}
    assert own == set(stock.state_dict())
    assert any(key.startswith("policy.") for key in model.state_dict())


def test_state_dict_survives_video(models):
    model, _ = models
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for inputs in frames(3, video_id="keys"):
        model([inputs])
    after = model.state_dict()
    assert before.keys() == after.keys()
    for key, value in before.items():
        if not key.startswith("policy."):
            assert torch.equal(value, after[key]), key


def test_without_video_id_it_is_detectron2(models):
    model, stock = models
    inputs = frames(2)
    with torch.no_grad():
        expected = stock(copy.deepcopy(inputs))
    for first, second in zip(expected, model(inputs), strict=True):
        assert_same(first, second)


def test_all_blocks_are_detectron2(models):
    model, stock = models
    stream = VideoStream()
    for inputs in frames(2):
        with torch.no_grad():
            expected = stock([inputs])[0]
        image_size = stream.canvas_size or (128, 192)
        grid = BlockGrid.full(block_size=model.block_size, image_size=image_size)
        result = model.step(inputs, stream, grid=grid)
        assert result.grid.is_full and result.macs == result.dense_macs > 0
        assert_same(expected, result.output, exact=False)


def test_no_block_repeats_the_output(models):
    model, _ = models
    stream = VideoStream()
    first, second, third = frames(3)
    result = model.step(first, stream)
    for inputs in (second, third):
        again = model.step(inputs, stream, grid=no_grid(model, result))
        assert again.macs == 0
        assert_same(result.output, again.output)


def test_interleaved_streams_do_not_mix(models):
    model, _ = models
    clips = {"a": frames(3), "b": frames(3, size=(128, 192))}
    active = torch.tensor([[[True, False, True], [False, True, False]]])
    grid_of = {}

    def run(order):
        streams = {name: VideoStream() for name in clips}
        outputs = {name: [] for name in clips}
        for name, index in order:
            grid = None
            if index:
                size = grid_of[name]
                grid = BlockGrid(active, block_size=model.block_size, image_size=size)
            result = model.step(clips[name][index], streams[name], grid=grid)
            grid_of[name] = result.grid.image_size
            outputs[name].append(result.output)
        return outputs

    after = run([(name, index) for name in clips for index in range(3)])
    mixed = run([(name, index) for index in range(3) for name in clips])
    for name in clips:
        for first, second in zip(after[name], mixed[name], strict=True):
            assert_same(first, second)


def test_streams_start_anew_by_id_and_by_index(mask_rcnn):
    mask_rcnn.streams.clear()
    first, second = frames(2)
    mask_rcnn([{**first, "video_id": "x"}])
    mask_rcnn([{**second, "video_id": "x"}])
    assert mask_rcnn.streams.get("x", 2).frames == 2
    mask_rcnn([{**first, "video_id": "x"}])
    assert mask_rcnn.streams.get("x", 1).frames == 1
    mask_rcnn([{**second, "video_id": "y"}])
    assert mask_rcnn.streams.get("y", 2).frames == 1


def test_a_batch_may_hold_several_streams(mask_rcnn):
    mask_rcnn.streams.clear()
    first, _ = frames(2)
    still, moved = mask_rcnn([{**first, "video_id": "x"}, {**first, "video_id": "y"}])
    assert_same(still, moved)
    assert len(mask_rcnn.streams) == 2


def test_a_batch_of_video_and_stills_is_refused(mask_rcnn):
    first, second = frames(2)
    with pytest.raises(ValueError, match="video_id"):
        mask_rcnn([{**first, "video_id": "x"}, second])


def test_what_a_step_tells(mask_rcnn):
    stream = VideoStream()
    first, second = frames(2)
    result = mask_rcnn.step(first, stream)
    assert result.observation is None and result.decision.logits is None
    assert result.previous_detections is None
    # The image is 100 x 180, its canvas 128 x 192: 2 x 3 blocks of 64 pixels.
    assert result.grid.shape == (2, 3) and result.grid.image_size == (128, 192)
    assert result.frame.shape == (1, 3, 64, 96)

    result = mask_rcnn.step(second, stream, learning=True)
    assert result.decision.logits.requires_grad
    assert torch.equal(result.decision.active, result.grid.active)
    assert result.observation.grid.shape == (1, 1, 2, 3) and result.observation.grid.all()
    assert result.observation.output.shape == (1, 4, 64, 96)
    assert result.macs <= result.dense_macs
    assert mask_rcnn.information_gain(result).shape == (1, 2, 3)
    assert set(result.seconds) == {"preprocess", "policy", "network", "heads", "observe"}
    assert all(value >= 0 for value in result.seconds.values())
    assert not mask_rcnn.step(first, stream).decision.logits.requires_grad


def test_frame_state_is_what_was_last_executed(mask_rcnn):
    stream = VideoStream()
    first, second = frames(2)
    old = mask_rcnn.step(first, stream)
    active = torch.zeros(1, 2, 3, dtype=torch.bool)
    active[0, 1, 2] = True
    grid = BlockGrid(active, block_size=64, image_size=old.grid.image_size)
    new = mask_rcnn.step(second, stream, grid=grid)
    expected = old.frame.clone()
    expected[..., 32:, 64:] = new.frame[..., 32:, 64:]
    assert not torch.equal(old.frame, new.frame)
    assert torch.equal(stream.frame_state, expected)
    assert torch.equal(stream.active, active)


def test_a_frame_that_is_not_finite_executes_all_and_teaches_nothing(models):
    model, _ = models
    stream = VideoStream()
    inputs = frames(4)
    inputs[2] = {**inputs[2], "image": inputs[2]["image"].float() * torch.nan}
    model.step(inputs[0], stream)
    broken = []
    for index in (1, 2, 3, 3):
        result = model.step(inputs[index], stream, learning=True)
        broken.append(bool(result.broken))
        if result.broken:
            assert result.grid.is_full
            assert model.information_gain(result).isnan().all()
        assert torch.isfinite(result.decision.logits).all()
        assert torch.isfinite(stream.frame_state).all() and torch.isfinite(stream.painted).all()
    assert broken == [False, True, True, False]
    assert torch.isfinite(model.information_gain(result)).all()


def test_a_change_of_size_starts_the_stream_anew(mask_rcnn, caplog):
    stream = VideoStream()
    mask_rcnn.step(frames(1)[0], stream)
    with caplog.at_level(logging.WARNING):
        result = mask_rcnn.step(frames(1, size=(128, 256))[0], stream)
    assert result.grid.is_full and result.decision.logits is None
    assert stream.frames == 1
    assert "changed size from (100, 180) to (128, 256)" in caplog.text


def test_the_task_network_is_frozen_and_stays_in_inference_mode(models):
    model, _ = models
    model.train()
    assert not model.base.training and not model.backbone.training
    task = [p for name, p in model.named_parameters() if not name.startswith("policy.")]
    assert task and not any(parameter.requires_grad for parameter in task)
    assert all(parameter.requires_grad for parameter in model.policy.parameters())


def test_backbone_passes_through_what_detectron2_asks(mask_rcnn):
    backbone = mask_rcnn.backbone
    assert isinstance(backbone, BlockSparseModule)
    assert backbone.size_divisibility == 32
    assert backbone.padding_constraints == backbone.dense_module.padding_constraints
    assert set(backbone.output_shape()) == {"p2", "p3", "p4", "p5", "p6"}
    assert "BlockCopyBackbone" in repr(mask_rcnn) and "BlockCopyRPNHead" in repr(mask_rcnn)


def test_block_size_must_align_with_the_strides(mask_rcnn):
    with pytest.raises(ValueError, match="48.*power of two.*to align with the strides"):
        BlockCopyVideoModel(
            base=mask_rcnn.base,
            policy=mask_rcnn.policy,
            task=mask_rcnn.task,
            block_size=48,
            max_streams=1,
        )


def test_streams_left_out_longest_are_forgotten():
    model, _ = build_pair("semantic", "MODEL.BLOCKCOPY.MAX_STREAMS", "2")
    (inputs,) = frames(1)
    for name in ("a", "b", "a", "c"):
        model([{**inputs, "video_id": name, "frame_index": 1}])
    assert len(model.streams) == 2
    assert model.streams.get("a", 2).started and model.streams.get("c", 2).started
    assert not model.streams.get("b", 2).started


@pytest.mark.parametrize("counted, start", [(False, 0.3), (True, 1.0)])
def test_first_frames_count_where_asked(mask_rcnn, counted, start):
    learner = OnlineLearner(mask_rcnn.policy, target=0.3, count_first_frames=counted)
    assert learner.state_dict()["moving_cost"].item() == pytest.approx(start)
    first, second = frames(2)
    stream = mask_rcnn.init_state()
    mask_rcnn.step(first, stream, learner=learner)
    executed = mask_rcnn.step(second, stream, learner=learner).executed
    expected = 0.9 * start + 0.1 * executed
    stream.reset()
    mask_rcnn.step(first, stream, learner=learner)
    expected = 0.9 * expected + 0.1 if counted else expected
    assert learner.state_dict()["moving_cost"].item() == pytest.approx(expected)


def test_policies_may_see_single_pixels(mask_rcnn):
    (inputs,) = frames(1, size=(96, 160))
    seen = []
    for resize in ("nearest", "mean"):
        mask_rcnn.policy_resize = resize
        seen.append(mask_rcnn.step(inputs, mask_rcnn.init_state()).frame)
    step = mask_rcnn.block_size // mask_rcnn.task.pixels_per_block
    pixels = (inputs["image"] - mask_rcnn.base.pixel_mean) / mask_rcnn.base.pixel_std
    found = seen[0][0, :, : 96 // step, : 160 // step]
    torch.testing.assert_close(found, pixels[:, ::step, ::step])
    assert (seen[0] != seen[1]).any()


def test_a_policy_of_other_inputs_sees_and_learns():
    inputs = '["frame", "previous_frame", "output"]'
    cfg = load_config(
        config_path(NETWORKS["mask-rcnn"][0]), [*SMALL, "MODEL.BLOCKCOPY.POLICY.INPUTS", inputs]
    )
    model = build_model(cfg)
    learner, stream = OnlineLearner(cfg, model.policy), model.init_state()
    before = copy.deepcopy(model.policy.network.state_dict())
    results = [model.step(frame, stream, learner=learner) for frame in frames(9)]
    for last, result in zip(results, results[1:]):
        assert torch.equal(result.observation.previous_frame, last.frame)
    assert model.policy.network.backbone[0].weight.shape[1] == 3 + 3 + 4
    after = model.policy.network.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_the_gpu_of_the_model_is_the_current_one(mask_rcnn, monkeypatch):
    """Triton launches on the current GPU, wherever its tensors lie."""
    current, seen = [], {}

    @contextlib.contextmanager
    def on_device(device):
        current.append(device.type)
        yield
        current.pop()

    def note(name, function):
        def noted(*args, **options):
            seen[name] = current[-1:]
            return function(*args, **options)

        return noted

    for module in (next_frame, learning, meta_arch):
        monkeypatch.setattr(module, "on_device", on_device)
    learner = OnlineLearner(mask_rcnn.policy, target=0.3)
    monkeypatch.setattr(learner, "learn", note("learning", learner.learn))
    monkeypatch.setattr(mask_rcnn.policy, "forward", note("policy", mask_rcnn.policy.forward))
    monkeypatch.setattr(mask_rcnn.backbone, "forward", note("network", mask_rcnn.backbone.forward))
    monkeypatch.setattr(mask_rcnn.task, "block_gain", note("gain", mask_rcnn.task.block_gain))
    stream = VideoStream()
    first, second = (mask_rcnn.step(x, stream, learner=learner) for x in frames(2))
    assert set(seen) == {"learning", "policy", "network", "gain"}
    seen.pop("gain")
    mask_rcnn.information_gain(second)
    assert all(devices == ["cpu"] for devices in seen.values()) and not current


@pytest.mark.parametrize("channels", [1, 4])
def test_pictures_of_other_numbers_of_channels(channels):
    """Such as those of thermal cameras."""
    numbers = [f"[{', '.join([x] * channels)}]" for x in ("110.0", "1.0")]
    opts = ("MODEL.PIXEL_MEAN", numbers[0], "MODEL.PIXEL_STD", numbers[1])
    model, stock = build_pair("retinanet", *opts, "MODEL.BLOCKCOPY.MOTION.NAME", "BlockMatching")
    stream, results = model.init_state(), []
    for inputs in frames(3):
        inputs["image"] = inputs["image"][:1].expand(channels, -1, -1)
        results.append(model.step(inputs, stream))
        if len(results) == 1:
            assert_same(stock([inputs])[0], results[0], exact=False)
    assert results[2].executed < 1 and results[2].field.isfinite().all()
