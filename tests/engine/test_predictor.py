import threading
import time
import weakref

import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor
from PIL import Image

import blockcopy_d2
from blockcopy_d2.config import base_config
from blockcopy_d2.data import FrameReadError
from blockcopy_d2.engine.defaults import load_config
from blockcopy_d2.engine.predictor import FrameMapper, VideoPredictor
from blockcopy_d2.resources import config_path
from tests.small_model import CONFIG, small_model_opts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


def build(folder, *opts):
    switch = ["MODEL.BLOCKCOPY.ENABLED", "True"]
    cfg = load_config(config_path(CONFIG), [*small_model_opts(folder), *switch, *opts])
    return VideoPredictor(cfg)


def frames(number, size=(96, 160)):
    generator = np.random.default_rng(0)
    still = generator.integers(0, 255, (*size, 3), dtype=np.uint8)
    for index in range(number):
        image = still.copy()
        image[20:60, 10 + 8 * index : 50 + 8 * index] = 255
        yield image


def test_first_frame_executes_all_blocks_and_the_policy_chooses_after(folder):
    results = [result for _, result in build(folder).stream(frames(3))]
    assert results[0].grid.fraction == 1 and results[0].decision.logits is None
    assert all(result.decision.logits is not None for result in results[1:])
    assert results[0].output["instances"].image_size == (96, 160)


def test_policy_learns_and_the_task_network_does_not(folder):
    predictor = build(folder, "MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY", "2")
    before = {name: value.clone() for name, value in predictor.model.state_dict().items()}
    for _ in predictor.stream(frames(5)):
        pass
    after = predictor.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("policy.") for name in changed)
    trained = {name for name, _ in predictor.model.policy.named_parameters(prefix="policy")}
    assert trained & changed


def test_nothing_is_learned_when_learning_is_off(folder):
    predictor = build(folder, "MODEL.BLOCKCOPY.LEARNER.ENABLED", "False")
    parameters = [parameter.clone() for parameter in predictor.model.policy.parameters()]
    for _ in predictor.stream(frames(5)):
        pass
    assert predictor.learner is None
    for parameter, old in zip(predictor.model.policy.parameters(), parameters):
        assert torch.equal(parameter, old)


def test_all_blocks_are_the_dense_model(folder):
    predictor = build(folder, "MODEL.BLOCKCOPY.POLICY.NAME", "AllBlocks")
    cfg = base_config(load_config(config_path(CONFIG), small_model_opts(folder)))
    dense = DefaultPredictor(cfg)
    for image, result in predictor.stream(frames(3)):
        found, expected = result.output["instances"], dense(image)["instances"]
        assert len(found) == len(expected) > 0
        assert torch.allclose(found.scores, expected.scores, atol=1e-4)
        assert torch.allclose(found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-2)
    assert predictor.scale == pytest.approx(128 / 96)


def test_a_new_video_starts_with_all_blocks(folder):
    predictor = build(folder)
    for _ in range(2):
        first, second = [result for _, result in predictor.stream(frames(2))]
        assert first.previous_detections is None and first.grid.fraction == 1
        assert second.previous_detections is not None


def test_rgb_models_get_rgb(folder):
    image = next(frames(1))
    bgr = build(folder).mapper(image)["image"]
    rgb = build(folder, "INPUT.FORMAT", "RGB").mapper(image)["image"]
    assert not torch.equal(rgb, bgr) and torch.equal(rgb, bgr.flip(0))


def test_video_is_streamed(folder):
    class Frame(np.ndarray):
        """An array that can be referred to weakly."""

    seen = []

    def watched():
        for image in frames(12):
            image = image.view(Frame)
            seen.append(weakref.ref(image))
            yield image
            del image

    for _ in build(folder).stream(watched()):
        alive = sum(reference() is not None for reference in seen)
        # One that runs, two waiting, and one held by the decoding thread.
        assert alive <= 4, f"{alive} of {len(seen)} frames are kept"
    assert len(seen) == 12


def test_results_read_as_the_output_dict(folder):
    result = build(folder)(next(frames(1)))
    assert result["instances"] is result.output["instances"]
    assert list(result) == ["instances"] and "sem_seg" not in result
    assert result.executed == 1 and result.age.max() == 0
    assert set(result.seconds) == {"preprocess", "policy", "network", "heads", "observe"}


def test_any_config_of_detectron2_will_do(folder):
    cfg = base_config(load_config(config_path(CONFIG), small_model_opts(folder)))
    for node, key in ((cfg.MODEL, "BLOCKCOPY"), (cfg.INPUT, "CLIP"), (cfg.TEST, "BLOCKCOPY")):
        del node[key]
    predictor = blockcopy_d2.VideoPredictor(cfg)
    results = [result for _, result in predictor.stream(frames(2))]
    assert results[1].grid.block_size == 128 and predictor.learner.target == 0.3
    assert "BLOCKCOPY" not in cfg.MODEL, "the caller's config is left alone"


def test_sources_are_paths_and_iterables(folder, tmp_path):
    for index, image in enumerate(frames(3)):
        Image.fromarray(image[:, :, ::-1]).save(tmp_path / f"{index}.png")
    predictor = build(folder, "MODEL.BLOCKCOPY.POLICY.NAME", "AllBlocks")
    of_path = [result for _, result in predictor.stream(str(tmp_path))]
    assert [result.time for result in of_path] == pytest.approx([0, 0.04, 0.08])
    assert all(result.time is None for _, result in predictor.stream(frames(2)))
    first = [result["instances"].scores for result in of_path]
    second = [result["instances"].scores for _, result in predictor.stream(frames(3))]
    assert len(first) == 3
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_a_change_of_size_runs_all_blocks(folder):
    predictor = build(folder, "MODEL.BLOCKCOPY.POLICY.NAME", "NoBlocks")
    sizes = [(96, 160), (96, 160), (64, 160), (64, 160)]
    images = [next(frames(1, size)) for size in sizes]
    results = [result for _, result in predictor.stream(images)]
    assert [result.executed for result in results] == [1, 0, 1, 0]
    assert [result["instances"].image_size for result in results] == sizes


def test_a_change_of_size_within_the_padding_runs_all_blocks(folder):
    opts = ["MODEL.BLOCKCOPY.POLICY.NAME", "NoBlocks", "INPUT.MIN_SIZE_TEST", "0"]
    predictor = build(folder, *opts)
    # All are padded to 96 x 160.
    images = [next(frames(1, size)) for size in [(90, 160), (90, 160), (92, 160), (92, 158)]]
    results = [result for _, result in predictor.stream(images)]
    assert [result.executed for result in results] == [1, 0, 1, 1]


@pytest.mark.parametrize(
    "image", [np.zeros((96, 160), np.uint8), np.zeros((3, 96, 160), np.uint8), np.zeros((9, 9, 3))]
)
def test_what_is_no_frame_is_named(folder, image):
    with pytest.raises(ValueError, match=r"expected uint8 of shape \(height, width, 3\), in BGR"):
        build(folder)(image)


def test_pil_pictures_are_frames(folder):
    predictor = build(folder, "MODEL.BLOCKCOPY.POLICY.NAME", "AllBlocks")
    arrays = list(frames(2))
    pictures = [Image.fromarray(image[:, :, ::-1]) for image in arrays]
    results = [result for _, result in predictor.stream(arrays)]
    for expected, (image, result) in zip(results, predictor.stream(pictures), strict=True):
        assert isinstance(image, np.ndarray) and image.shape == (96, 160, 3)
        assert torch.equal(result["instances"].scores, expected["instances"].scores)
    with pytest.raises(TypeError, match="A frame is a torch.Tensor; expected a numpy array"):
        next(predictor.stream([torch.zeros(96, 160, 3, dtype=torch.uint8)]))


def test_a_source_may_use_its_memory_again(folder):
    def camera():
        buffer = np.empty((96, 160, 3), np.uint8)
        for image in frames(6):
            buffer[:] = image
            yield buffer

    predictor = build(folder, "MODEL.BLOCKCOPY.POLICY.NAME", "AllBlocks")
    expected = list(predictor.stream(frames(6)))
    seen = list(predictor.stream(camera()))
    for (image, result), (right, other) in zip(seen, expected, strict=True):
        assert np.array_equal(image, right)
        assert torch.equal(result["instances"].scores, other["instances"].scores)
    # The mapper, too, keeps none of it, in any byte order.
    planes = np.zeros((3, 96, 160), np.uint8)
    mapped = FrameMapper()(planes.transpose(1, 2, 0))["image"]
    planes[:] = 255
    assert not mapped.any()


def outputs(stream):
    return [(result.executed, result["instances"].scores) for _, result in stream]


def test_streams_that_are_open_at_once_do_not_mix(folder):
    predictor = build(folder, "MODEL.BLOCKCOPY.POLICY.NAME", "FrameDifference")
    first, second = list(frames(5)), [image[::-1].copy() for image in frames(5)]
    alone = [outputs(predictor.stream(clip)) for clip in (first, second)]
    streams = [predictor.stream(clip) for clip in (first, second)]
    together = [[], []]
    for _ in range(5):
        for stream, found in zip(streams, together):
            found += outputs([next(stream)])
        # Single frames have a stream of their own as well.
        predictor(first[0])
    assert [next(stream, None) for stream in streams] == [None, None]
    for expected, found in zip(alone, together):
        assert [e[0] for e in found] == [e[0] for e in expected]
        assert all(torch.equal(a[1], b[1]) for a, b in zip(found, expected))
    assert alone[0][1][0] < 1


def test_streams_with_policies_of_their_own_beside_another(folder):
    predictor = build(folder, "MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY", "1")
    own = predictor.streams([frames(3), frames(3)], own_policies=True)
    next(own)
    before = {name: value.clone() for name, value in predictor.model.policy.state_dict().items()}
    for _ in predictor.stream(frames(3)):
        pass
    after = predictor.model.policy.state_dict()
    assert any(not torch.equal(value, after[name]) for name, value in before.items())
    between = {name: value.clone() for name, value in after.items()}
    predictor.set_target(0.6)
    assert len(list(own)) == 2
    assert all(torch.equal(value, between[name]) for name, value in after.items())
    assert predictor.target == 0.6 and len(predictor._policies) == 1


def test_memory_of_a_stream_that_ended_serves_the_next(folder):
    predictor = build(folder, "MODEL.BLOCKCOPY.POLICY.NAME", "NoBlocks")
    states = []
    init_state = predictor.model.init_state
    predictor.model.init_state = lambda: states.append(init_state()) or states[-1]
    for _ in range(3):
        assert [result.executed for _, result in predictor.stream(frames(2))] == [1, 0]
    broken = predictor.stream(iter([next(frames(1)), None]))
    next(broken)
    with pytest.raises(TypeError, match="A frame is a builtins.NoneType"):
        next(broken)
    assert [result.executed for _, result in predictor.stream(frames(2))] == [1, 0]
    assert len(states) == 1


def test_frames_that_passed_are_counted(folder, monkeypatch):
    class Live:
        """Gives a frame whenever it is told to."""

        live = True

        def __init__(self):
            self.wanted = threading.Semaphore(0)

        def read(self, vectors=False):
            for image in frames(8):
                self.wanted.acquire(timeout=30)
                yield image, None, None

    camera = Live()
    monkeypatch.setattr(
        "blockcopy_d2.engine.predictor.open_frames", lambda source, **options: source
    )
    images = list(frames(8))
    stream = build(folder, "MODEL.BLOCKCOPY.POLICY.NAME", "NoBlocks").stream(camera)
    camera.wanted.release()
    taken = [next(stream)]
    for number in (1, 4, 2):
        camera.wanted.release(number)
        deadline = time.monotonic() + 30
        while camera.wanted._value and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        taken.append(next(stream))
    assert [result.dropped for _, result in taken] == [0, 0, 3, 1]
    for (image, _), index in zip(taken, (0, 1, 5, 7)):
        assert np.array_equal(image, images[index])


def test_closing_does_not_wait_for_a_source_that_is_silent(folder):
    go_on = threading.Event()

    def silent():
        yield next(frames(1))
        go_on.wait(60)

    predictor = build(folder, "MODEL.BLOCKCOPY.POLICY.NAME", "NoBlocks")
    for open_stream in (predictor.stream, lambda source: predictor.streams([source, silent()])):
        stream = open_stream(silent())
        next(stream)
        start = time.monotonic()
        stream.close()
        assert time.monotonic() - start < 2
    go_on.set()
    for thread in [t for t in threading.enumerate() if t.name == "read-ahead"]:
        thread.join(5)
        assert not thread.is_alive()


def test_leaving_a_stream_early_stops_its_thread(folder):
    stream = build(folder, "MODEL.BLOCKCOPY.POLICY.NAME", "NoBlocks").stream(frames(1000))
    next(stream)
    stream.close()
    assert not [t for t in threading.enumerate() if t.name == "read-ahead"]


def test_an_error_of_the_source_reaches_the_caller(folder):
    def broken():
        yield from frames(2)
        raise FrameReadError("clip.mp4", "clip", 2, "gone")

    seen = []
    with pytest.raises(FrameReadError, match="Frame 2 of clip clip"):
        for _, result in build(folder).stream(broken()):
            seen.append(result)
    assert len(seen) == 2


def test_the_target_moves_at_run_time(folder):
    predictor = build(folder)
    predictor.set_target(0.7)
    assert predictor.learner.target == 0.7
    predictor = build(folder, "MODEL.BLOCKCOPY.POLICY.NAME", "FrameDifference")
    shares = []
    for index, (_, result) in enumerate(predictor.stream(frames(4))):
        shares.append(result.executed)
        predictor.set_target((0.5, 1.0, 0.0, 0.0)[index])
    # 128 x 213 pixels, padded to 128 x 224, are 2 x 4 blocks of 64.
    assert shares == [1.0, 0.5, 1.0, 0.0]
    with pytest.raises(ValueError, match=r"within \[0, 1\]"):
        predictor.set_target(1.5)
    predictor = build(folder, "MODEL.BLOCKCOPY.POLICY.NAME", "AllBlocks")
    for change in (predictor.set_target, predictor.set_budget):
        with pytest.raises(ValueError, match="AllBlocks follows no target."):
            change(0.5)
    predictor = build(folder, "MODEL.BLOCKCOPY.LEARNER.ENABLED", "False")
    with pytest.raises(ValueError, match="LearnedPolicy follows no target while it does not learn"):
        predictor.set_budget(20)


def test_a_budget_is_held_by_moving_the_target(folder):
    built = build(folder, "MODEL.BLOCKCOPY.POLICY.NAME", "FrameDifference")

    class Clock:
        """Frames take 20 ms and 10 ms for each of 8 blocks."""

        now = 0.0

        def __call__(self):
            return self.now

    clock = Clock()
    predictor = VideoPredictor(model=built.model, mapper=built.mapper, clock=clock)
    step_batch = built.model.step_batch

    def timed(*args, **kwargs):
        results = step_batch(*args, **kwargs)
        clock.now += 0.02 + 0.01 * results[0].grid.num_active
        return results

    predictor.model.step_batch = timed
    predictor.set_target(1.0)
    predictor.set_budget(50)
    times = []
    for _ in predictor.stream(frames(40)):
        times.append(clock.now)
    spent = np.diff(times)
    assert spent[0] == pytest.approx(0.1)
    assert np.median(spent[-10:]) == pytest.approx(0.05, abs=0.011)
    predictor.set_budget(None)
    before = predictor.model.policy.target
    for _ in predictor.stream(frames(12)):
        pass
    assert predictor.model.policy.target == before


@pytest.mark.parametrize("own_policies", [False, True])
def test_several_videos_run_together(folder, own_policies):
    predictor = build(folder, "MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY", "1")
    before = {name: value.clone() for name, value in predictor.model.policy.state_dict().items()}
    ticks = list(predictor.streams([frames(4), frames(2)], own_policies=own_policies))
    assert [[entry is not None for entry in tick] for tick in ticks] == [
        [True, True],
        [True, True],
        [True, False],
        [True, False],
    ]
    assert all(tick[0][1]["instances"].image_size == (96, 160) for tick in ticks)
    assert ticks[0][1][1].is_first and not ticks[1][1][1].is_first
    after = predictor.model.policy.state_dict()
    learned = any(not torch.equal(value, after[name]) for name, value in before.items())
    assert learned != own_policies
    predictor.set_target(0.4)
    assert predictor.learner.target == 0.4
