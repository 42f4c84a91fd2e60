"""Frames as CUDA graphs are replayed, wait for nothing and share nothing."""

import pytest
import torch

from blockcopy_d2.kernels.graph import CapturedFunction
from blockcopy_d2.modeling import VideoStream
from blockcopy_d2.policy import OnlineLearner
from tests.modeling.running.networks import NETWORKS
from tests.modeling.running.sides import Side, clip, panning_clip, sides

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.mark.parametrize("motion, delay", [("none", 0), ("BlockMatching", 0), ("none", 3)])
def test_a_warm_frame_never_waits_and_allocates_nothing(folder, built, motion, delay):
    opts = ("MODEL.BLOCKCOPY.MOTION.NAME", motion, "MODEL.BLOCKCOPY.LEARNER.DELAY", delay)
    graph = Side(folder, built, "cuda", *opts, graph=True)
    images = [image.cpu() for image in clip("cuda", 4)]

    def run():
        result, told = None, None
        torch.cuda.set_sync_debug_mode("error")
        try:
            for image in images:
                # The last result is freed before the next frame.
                del result, told
                result, told = graph.frame(image)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert len(result["instances"]) == 5 and "loss" in told

    # The learner's step of every fourth frame is captured the third time.
    for image in 4 * images:
        assert graph.frame(image)[0]["instances"] is not None
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    after = torch.cuda.memory_stats()
    for name in (
        "allocated_bytes.all.current",
        "reserved_bytes.all.current",
        "num_alloc_retries",
        "segment.all.allocated",
    ):
        assert after[name] == before[name], name
    kept = after["allocated_bytes.all.peak"] - before["allocated_bytes.all.current"]
    assert kept < 2**22, "a frame takes more than its result"


@pytest.mark.parametrize("name", ["retinanet", "fcos", "cascade", "mgan", "panoptic", "proposals"])
def test_a_warm_frame_of_other_networks_never_waits(folder, built, name):
    graph = Side(folder, built, "cuda", graph=True, network=NETWORKS[name])
    images = list(clip("cuda", 4))
    for image in 4 * images:
        graph.frame(image)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for image in images:
            result, told = graph.frame(image)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert hasattr(result, "_graph") and "loss" in told and all(map(len, result.values()))


@pytest.mark.parametrize("own", [False, True], ids=["one-policy", "one-each"])
def test_a_warm_batch_never_waits_and_captures_nothing_anew(folder, built, own, monkeypatch):
    """Streams join, leave, cut and miss frames."""
    motion = ("MODEL.BLOCKCOPY.MOTION.NAME", "BlockMatching", "MODEL.BLOCKCOPY.SCENE_CUT", 0.2)
    graph = Side(folder, built, "cuda", *motion, graph=True)
    batch, learner = graph.model.init_state(4, own_policies=own), graph.learner
    if own:
        learner = [OnlineLearner(graph.cfg, policy) for policy in batch.policies]
    images = [list(clip("cuda", 4, seed=seed)) for seed in range(4)]

    def tick(number, missing=()):
        inputs = [None if n in missing else {"image": x[number % 4]} for n, x in enumerate(images)]
        return graph.model.step_batch(inputs, batch, learner=learner)

    for number in range(20):
        for result in tick(number):
            assert result["instances"] is not None
    # Also alone: frames of one policy are then a lesson of their own.
    tick(20, missing=(1, 2, 3))
    functions = []
    capture = CapturedFunction.capture
    monkeypatch.setattr(
        CapturedFunction, "capture", lambda *args: functions.append(args) or capture(*args)
    )
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number, missing in enumerate([(), (1,), (1, 3), (), (0, 1, 2), (), (2,), ()]):
            if number in (3, 5):
                batch.reset(number - 2)
            results = tick(number, missing)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not functions
    assert [result.is_first for result in results] == [False] * 4
    assert all(len(result["instances"]) == 5 for result in results)
    assert batch.counts == [28, 4, 26, 3]


def test_a_batch_is_its_streams_one_by_one_in_half_precision(folder, built):
    policy = ("MODEL.BLOCKCOPY.POLICY.NAME", "MovedDifference")
    motion = ("MODEL.BLOCKCOPY.MOTION.NAME", "BlockMatching")
    graph = Side(folder, built, "cuda", *policy, *motion, graph=True, learns=False)
    batch, alone = graph.model.init_state(4), [VideoStream() for _ in range(4)]
    videos = [list(panning_clip("cuda", [(5, -3)] * 6, seed=seed)) for seed in range(4)]
    graph.model.amp = True
    try:
        for number in range(7):
            inputs = [{"image": video[number]} for video in videos]
            if number in (2, 4):
                inputs[number // 2] = None
            for n, result in enumerate(graph.model.step_batch(inputs, batch)):
                if result is None:
                    continue
                expected = graph.model.step(inputs[n], alone[n])
                assert torch.equal(result.grid.active, expected.grid.active), (number, n)
                found, wanted = result["instances"].scores, expected["instances"].scores
                torch.testing.assert_close(found, wanted, atol=1e-2, rtol=1e-2)
    finally:
        graph.model.amp = False


def test_graphs_are_replayed(folder, built):
    graph = Side(folder, built, "cuda", graph=True)
    images = list(clip("cuda", 13))
    graph.frame(images[0])
    (capture,) = (x for x in graph.stream.graph._captures.values() if x.asks)
    assert set(capture._functions) == {"infer", "finish", "observe"}
    for image in images[1:]:
        graph.frame(image)
    (lesson,) = graph.stream.graph._lessons.values()
    lessons = lesson._functions
    assert len(lessons) == 3 and all(x._graph is not None for x in lessons.values())


def test_motion_is_part_of_the_graph(folder, built):
    """Replayed frames estimate motion and move maps, though none of their Python runs."""
    motion = ("MODEL.BLOCKCOPY.MOTION.NAME", "BlockMatching")
    graph = Side(folder, built, "cuda", *motion, graph=True, learns=False)
    images = list(panning_clip("cuda", [(5, -3)] * 6))
    for image in images[:3]:
        graph.frame(image)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("estimate_motion", "move_history", "motion_features"):
            patch.setattr(f"blockcopy_d2.modeling.running.frame_capture.{name}", None)
        for image in images[3:]:
            result, _ = graph.frame(image)
            away = result.field[0] - torch.tensor([5.0, -3.0], device="cuda")[:, None, None]
            moved = (away.abs() <= 0.5).all(0)
            assert moved.float().mean() > 0.3


def test_the_time_of_stages_is_that_of_the_frame(folder, built):
    graph = Side(folder, built, "cuda", graph=True)
    images = list(clip("cuda", 8))
    for image in images:
        graph.frame(image)
    results, spans = [], []
    for image in images:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        results.append(graph.frame(image)[0])
        events[1].record()
        spans.append(events)
    torch.cuda.synchronize()
    for number, (result, (start, end)) in enumerate(zip(results, spans)):
        seconds, whole = result.seconds, start.elapsed_time(end) / 1000
        # The clock ticks once a microsecond on some GPUs.
        assert all(x > -2e-6 for x in seconds.values()), (number, seconds)
        assert seconds["network"] > 2e-5 and seconds["heads"] > 2e-5, (number, seconds)
        assert sum(seconds.values()) < whole + 2e-5, (number, seconds, whole)


def test_streams_of_a_model_share_no_memory(folder, built):
    graph = Side(folder, built, "cuda", graph=True)
    streams = [VideoStream(), VideoStream()]
    for stream in streams:
        for image in clip("cuda", 3):
            graph.frame(image, stream=stream)
    first, second = ({x.data_ptr() for x in stream.graph.memory.tensors()} for stream in streams)
    assert not first & second


def test_half_precision(folder, built):
    eager, graph = sides(folder, built, "cuda", "MODEL.BLOCKCOPY.POLICY.NAME", "FrameDifference")
    for side in (eager, graph):
        side.model.amp = True
    try:
        for image in clip("cuda", 5):
            (expected, _), (found, _) = eager.frame(image), graph.frame(image)
            assert torch.equal(found.grid.active, expected.grid.active)
            expected, found = expected["instances"].scores, found["instances"].scores
            torch.testing.assert_close(found, expected, atol=1e-2, rtol=1e-2)
    finally:
        for side in (eager, graph):
            side.model.amp = False


@pytest.mark.parametrize("pinned", [True, False])
def test_an_image_of_the_host_may_be_written_to_at_once(folder, built, pinned):
    """The device may be far behind, and the host goes on before the image is read."""
    graph = Side(folder, built, "cuda", "MODEL.BLOCKCOPY.POLICY.NAME", "NoBlocks", graph=True)
    images = [image.cpu() for image in clip("cuda", 6)]
    for image in images[:3]:
        graph.frame(image)
    for image in images[3:]:
        given = image.clone().pin_memory() if pinned else image.clone()
        torch.cuda.synchronize()
        torch.cuda._sleep(200_000_000)
        behind = torch.cuda.current_stream().record_event()
        graph.model.step({"image": given}, graph.stream)
        assert not behind.query(), "the host waited for the device"
        given.zero_()
        assert torch.equal(graph.stream.graph._latest.image[0].cpu(), image)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("graph", [False, True])
def test_a_model_runs_on_another_gpu_than_the_current_one(folder, built, graph):
    motion = ("MODEL.BLOCKCOPY.MOTION.NAME", "BlockMatching")
    sides = [Side(folder, built, device, *motion, graph=graph) for device in ("cuda:0", "cuda:1")]
    for images in zip(*(clip(side.model.device, 5) for side in sides)):
        (one, told), (other, also_told) = (side.frame(image) for side, image in zip(sides, images))
        assert torch.cuda.current_device() == 0 and other.age.device.index == 1
        assert torch.equal(one.grid.active.cpu(), other.grid.active.cpu())
        for key in ("scores", "pred_masks"):
            found, wanted = (x["instances"].get(key).cpu() for x in (other, one))
            torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)
        assert told.keys() == also_told.keys()
