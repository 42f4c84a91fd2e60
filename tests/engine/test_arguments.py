"""Arguments as people pass them: numbers of any library are accepted, errors name all others."""

import argparse
import copy
import math
import pickle

import numpy as np
import pytest
import torch

from blockcopy_d2.data import VideoFrames, open_frames, read_ahead
from blockcopy_d2.engine import VideoPredictor, arguments
from blockcopy_d2.engine.defaults import load_config
from blockcopy_d2.modeling import BlockCopyVideoModel, StreamBatch
from blockcopy_d2.policy import (
    EveryKthFrame,
    FrameDifference,
    LearnedPolicy,
    MovedDifference,
    OnlineLearner,
    RandomBlocks,
)
from blockcopy_d2.resources import config_path
from blockcopy_d2.visualization import VideoWriter
from tests.small_model import CONFIG, small_model_opts

PICTURE = np.zeros((64, 96, 3), dtype=np.uint8)
IMAGE = torch.zeros(3, 64, 96, dtype=torch.uint8)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    opts = small_model_opts(tmp_path_factory.mktemp("weights"))
    return VideoPredictor(load_config(config_path(CONFIG), opts))


@pytest.mark.parametrize("value", ["no", "False", 1, None])
def test_a_switch_is_true_or_false(predictor, value):
    model = predictor.model
    calls = {
        "own_policies": [
            lambda: model.init_state(2, own_policies=value),
            lambda: next(predictor.streams([[PICTURE]], own_policies=value)),
        ],
        "learning": [lambda: model.step({"image": IMAGE}, model.init_state(), learning=value)],
        "amp": [lambda: rebuilt(model, amp=value)],
        "cuda_graph": [lambda: rebuilt(model, cuda_graph=value)],
        "sync": [lambda: OnlineLearner(LearnedPolicy(num_classes=1), target=0.3, sync=value)],
    }
    for name, calls_with_it in calls.items():
        for call in calls_with_it:
            with pytest.raises(ValueError, match=f"{name} is .*; it must be True or False"):
                call()


def rebuilt(model, **changes):
    options = {"block_size": 64, "max_streams": 2, **changes}
    return BlockCopyVideoModel(base=model.base, policy=model.policy, task=model.task, **options)


@pytest.mark.parametrize("value", ["0.3", math.nan, math.inf, -1, True, None, [0.3]])
def test_numbers_are_in_their_range(predictor, value):
    learned = LearnedPolicy(num_classes=1)
    calls = {
        "target": [
            lambda: predictor.set_target(value),
            lambda: RandomBlocks(target=value),
            lambda: FrameDifference(target=value),
            lambda: OnlineLearner(learned, target=value),
        ],
        "lr": [lambda: OnlineLearner(learned, target=0.3, learning_rate=value)],
        "cost_weight": [lambda: OnlineLearner(learned, target=0.3, cost_weight=value)],
        "age_weight": [lambda: MovedDifference(target=0.3, age_weight=value)],
        "period": [lambda: EveryKthFrame(period=value)],
        "seed": [lambda: RandomBlocks(target=0.3, seed=value)],
        "pixels_per_block": [lambda: LearnedPolicy(num_classes=1, pixels_per_block=value)],
        "block_size": [lambda: rebuilt(predictor.model, block_size=value)],
        "scene_cut": [lambda: rebuilt(predictor.model, scene_cut=value)],
        "refresh_every": [lambda: rebuilt(predictor.model, refresh_every=value)],
        "depth": [lambda: read_ahead([], value)],
        "default_fps": [lambda: VideoFrames(".", default_fps=value)],
    }
    for name, calls_with_it in calls.items():
        for call in calls_with_it:
            with pytest.raises(ValueError, match=rf"{name} is .*; it must be"):
                call()


@pytest.mark.parametrize("number", [np.float32(0.25), np.float64(0.25), 1])
def test_numbers_of_any_library_are_numbers(predictor, number, tmp_path):
    predictor.set_target(number)
    assert predictor.target == number and type(predictor.target) is float
    with VideoWriter(tmp_path / "a.mp4", number) as video:
        video.write(PICTURE, number)
    assert VideoFrames(tmp_path / "a.mp4").fps == pytest.approx(float(number))
    assert rebuilt(predictor.model, block_size=np.int64(64)).block_size == 64


@pytest.mark.parametrize("fps", ["25", math.nan, 0, -1, None, True, math.inf])
def test_a_rate_of_a_video_is_positive(fps, tmp_path):
    with pytest.raises(ValueError, match="positive number of frames per second"):
        VideoWriter(tmp_path / "a.mp4", fps)


@pytest.mark.parametrize("picture", [PICTURE.astype(float), PICTURE[..., 0], None, IMAGE, "a.png"])
def test_what_is_no_picture_is_not_written(picture, tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 25) as video:
        with pytest.raises((TypeError, ValueError), match="A frame is"):
            video.write(picture)


@pytest.mark.parametrize("count", ["2", 2.0, 0, -1, True, math.nan])
def test_streams_are_a_whole_number(predictor, count):
    with pytest.raises(ValueError, match="num_streams is .*a whole number, at least 1"):
        predictor.model.init_state(count)


@pytest.mark.parametrize("slot", [2, -1, "0", 1.0, True])
def test_a_slot_is_one_of_the_batch(slot):
    with pytest.raises(ValueError, match="slot is .*at most 1"):
        StreamBatch(2).reset(slot)


@pytest.mark.parametrize("index", ["0", 0.0, -1, math.nan, [0], True])
def test_an_index_of_a_frame_is_a_whole_number(predictor, index):
    with pytest.raises(ValueError, match="frame_index is"):
        predictor.model([{"image": IMAGE, "video_id": "a", "frame_index": index}])


def test_a_time_may_be_the_index_of_a_frame(predictor):
    start = np.int64(1_700_000_000_000_000_000)
    for seconds in range(2):
        inputs = {"image": IMAGE, "video_id": "clock", "frame_index": start + seconds * 10**9}
        assert len(predictor.model([inputs])) == 1
    assert predictor.model.streams.get("clock", None).frames == 2


@pytest.mark.parametrize("video_id", [None, ["a"], {}])
def test_a_video_has_a_name(predictor, video_id):
    """Without a video_id the pictures of a loader would share one stream."""
    with pytest.raises(ValueError, match="video_id of a frame is .*a still image"):
        predictor.model([{"image": IMAGE, "video_id": video_id, "frame_index": 0}])


NO_IMAGES = {
    "array": PICTURE,
    "nothing": None,
    "name": "a.png",
    "batch": IMAGE[None],
    "two dimensions": IMAGE[0],
    "empty": IMAGE[:, :0],
    "grey": IMAGE[:1],
    "alpha": IMAGE[[0, 1, 2, 0]],
    "channels last": IMAGE.permute(1, 2, 0),
    "double": IMAGE.double(),
    "bool": IMAGE.bool(),
    "complex": IMAGE.cfloat(),
    "meta": IMAGE.to("meta"),
    "sparse": IMAGE.to_sparse(),
}


@pytest.mark.parametrize("image", NO_IMAGES.values(), ids=NO_IMAGES)
def test_an_image_is_a_tensor(predictor, image):
    inputs = {"image": image, "video_id": "a", "frame_index": 0}
    with pytest.raises(ValueError, match="The 'image' of an input is"):
        predictor.model([inputs])
    del inputs["image"]
    with pytest.raises(ValueError, match="The 'image' of an input is"):
        predictor.model([inputs])


@pytest.mark.parametrize("inputs", [{"image": IMAGE}, IMAGE, [None], ["a.png"], [IMAGE]])
def test_inputs_are_a_list_of_dicts(predictor, inputs):
    with pytest.raises(TypeError, match="expected a list of dicts"):
        predictor.model(inputs)


def test_inputs_without_an_image_are_refused(predictor):
    with pytest.raises(ValueError, match="input of the model is empty"):
        predictor.model([])


@pytest.mark.parametrize("side", ["64", 64.5, 0, -1, None])
def test_an_output_has_a_size_in_whole_pixels(predictor, side):
    inputs = {"image": IMAGE, "video_id": "a", "height": 64, "width": side}
    with pytest.raises(ValueError, match="'width' of an input.* whole number, at least 1"):
        predictor.model([inputs])


@pytest.mark.parametrize(
    ("image", "warns"), [(IMAGE + 0.5, True), (IMAGE + 1, False), (IMAGE * 0.0, False)]
)
def test_values_from_0_to_1_are_noticed(predictor, caplog, image, warns):
    for index in range(2):
        predictor.model([{"image": image, "video_id": "bright", "frame_index": index}])
    predictor.model([{"image": image, "video_id": "another", "frame_index": 0}])
    assert caplog.text.count("lie between 0 and 1") == warns


def test_a_detector_in_half_precision_is_refused_on_a_cpu(predictor):
    model = copy.deepcopy(predictor.model).half()
    inputs = {"image": IMAGE, "video_id": "a", "frame_index": 0}
    with pytest.raises(ValueError, match="GeneralizedRCNN are float16, .* call model.float()"):
        model([inputs])
    assert len(model.float()([inputs])) == 1


def test_a_predictor_takes_a_config(predictor):
    for other in (predictor.model.base, "mask_rcnn.yaml", None):
        with pytest.raises(TypeError, match=f"takes a config, not {type(other).__name__}"):
            VideoPredictor(other)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_predictor_in_use_can_be_copied(predictor, copied):
    first, second = predictor(PICTURE), predictor(PICTURE)
    other = copied(predictor)
    start = other(PICTURE)
    assert start.is_first and start.executed == 1
    assert [len(x["instances"]) for x in (start, copied(second))] == [len(first["instances"])] * 2
    assert other.learner.updates.parameters[0] is next(other.model.policy.parameters())


def test_a_predictor_needs_a_model_that_runs_in_blocks(predictor):
    for model in (predictor.model.base, None, "model.pth"):
        with pytest.raises(TypeError, match="does not run in blocks: .*accelerate"):
            VideoPredictor(model=model)


@pytest.mark.parametrize("source", [True, None, 3.5, object(), torch.nn.ReLU()])
def test_what_is_no_video_is_named(predictor, source):
    with pytest.raises(TypeError, match="A video is a path"):
        next(predictor.stream(source))


@pytest.mark.parametrize("sources", ["a.mp4", b"a.mp4", 3, None])
def test_one_path_is_not_several_videos(predictor, sources):
    with pytest.raises(TypeError, match="not .*: give a list"):
        next(predictor.streams(sources))


def test_a_list_without_a_video_is_refused(predictor):
    with pytest.raises(ValueError, match="list of videos is empty"):
        next(predictor.streams([]))


def test_a_camera_has_a_number_of_any_library():
    with pytest.raises(FileNotFoundError, match="/dev/video99 does not exist"):
        open_frames(np.int64(99))


class Sequence:
    """A sequence like torch's data sets: no iterator, no end but an IndexError."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return [PICTURE, PICTURE + 1, PICTURE + 2][index]


def test_a_sequence_is_a_video():
    assert [frame.max() for frame in open_frames(Sequence())] == [0, 1, 2]
    assert [frame.max() for frame in open_frames(iter(Sequence()))] == [0, 1, 2]


@pytest.mark.parametrize("key", ["POLICY", "MOTION"])
def test_an_unknown_name_is_answered_with_near_ones(key):
    opts = [f"MODEL.BLOCKCOPY.{key}.NAME", {"POLICY": "RandomBlock", "MOTION": "DisFlow"}[key]]
    near = {"POLICY": "RandomBlocks", "MOTION": "DISFlow"}[key]
    with pytest.raises(ValueError, match=rf"{key}.NAME is .*one of .*\. Did you mean {near}\?"):
        load_config(opts=opts)


def parsed(*command):
    parser = argparse.ArgumentParser()
    arguments.add_live_arguments(parser)
    parser.add_argument("--frames", type=arguments.positive)
    parser.add_argument("--target", type=arguments.fraction)
    return parser.parse_args(command)


@pytest.mark.parametrize("text", ["many", "", "1/0", "nan", "-1", "0x10"])
@pytest.mark.parametrize("option", ["--fps", "--reconnect", "--frames", "--target"])
def test_what_is_no_number_says_what_is_wanted(option, text, capsys):
    with pytest.raises(SystemExit):
        parsed(f"{option}={text}")
    assert f"argument {option}: {text} is not " in capsys.readouterr().err


def test_rates_and_addresses_are_read_as_people_write_them():
    assert parsed("--fps", "30000/1001").fps == pytest.approx(29.97, abs=1e-3)
    assert parsed("--metrics-port", "[::1]:9000").metrics_port == (9000, "::1")
