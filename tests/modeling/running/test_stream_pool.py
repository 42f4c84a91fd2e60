"""Videos by their id: those that come together form a batch, in which each keeps its slot."""

import pytest
import torch

from blockcopy_d2.modeling import StreamPool
from blockcopy_d2.policy import OnlineLearner
from tests.modeling.running.sides import SIZE, Side, assert_same_output, clip, sides

DIFFERENCE = ("MODEL.BLOCKCOPY.POLICY.NAME", "FrameDifference")


def frames(pool, *videos, size=SIZE):
    batch, slots, _ = pool.get_batch([(video, index) for video, index in videos], size)
    return batch, slots


def test_videos_keep_their_slots():
    pool = StreamPool(max_streams=8)
    batch, slots = frames(pool, ("a", 0), ("b", 0), ("c", 0))
    assert batch.num_streams == 4 and slots == [0, 1, 2]
    again, slots = frames(pool, ("c", 1), ("a", 1))
    assert again is batch and slots == [2, 0]
    again, slots = frames(pool, ("d", 0), ("b", 1))
    assert again is batch and slots == [3, 1]
    assert len(pool) == 4 and pool.is_in_batch("d") and not pool.is_in_batch("e")


def test_a_batch_grows_in_steps():
    pool = StreamPool(max_streams=6)
    sizes = []
    for number in (2, 3, 4, 5, 6):
        batch, slots = frames(pool, *(("abcdef"[n], None) for n in range(number)))
        sizes.append(batch.num_streams)
        assert sorted(slots) == list(range(number))
    assert sizes == [2, 4, 4, 6, 6]


def test_the_least_recently_used_video_leaves_its_slot(caplog):
    pool = StreamPool(max_streams=3)
    batch, _ = frames(pool, ("a", 0), ("b", 0), ("c", 0))
    batch.counts = [3, 3, 3]
    again, slots = frames(pool, ("c", 1), ("d", 0))
    assert again is batch and slots == [2, 0] and len(pool) == 3 and batch.num_streams == 3
    assert not pool.is_in_batch("a") and pool.is_in_batch("b")
    pool.get("alone", 0)
    assert len(pool) == 3 and not pool.is_in_batch("b")
    # Its slot is free for the one that goes on.
    again, slots = frames(pool, ("a", 4), ("c", 2))
    assert again is batch and slots == [1, 2]
    assert "5 videos take turns" in caplog.text and len(pool) == 3


def test_a_video_leaves_a_batch_for_a_stream_of_its_own():
    pool = StreamPool(max_streams=4)
    batch, _ = frames(pool, ("a", 0), ("b", 0))
    alone = pool.get("a", 1)
    assert alone.num_streams == 1 and not pool.is_in_batch("a") and pool.get("a", 2) is alone
    again, slots = frames(pool, ("b", 1), ("c", 0))
    assert again is batch and slots == [1, 0]
    again, slots = frames(pool, ("b", 2), ("a", 3))
    assert again is not batch and again.num_streams == 4 and len(pool) == 3


def test_frames_of_another_size_are_another_batch():
    pool = StreamPool(max_streams=8)
    small, _ = frames(pool, ("a", 0), ("b", 0), ("c", 0), size=(64, 64))
    small.image_size = (64, 64)
    large, slots = frames(pool, ("b", 1), ("d", 0), size=(128, 128))
    large.image_size = (128, 128)
    assert large is not small and slots == [0, 1]
    again, slots = frames(pool, ("a", 1), ("c", 1), size=(64, 64))
    assert again is small and slots == [0, 2]


@pytest.mark.parametrize("frame", [("a", 0.5), ("a", -1), (None, 0), (["a"], 0)])
def test_what_is_no_frame_of_a_video_changes_nothing(frame):
    pool = StreamPool(max_streams=2)
    with pytest.raises(ValueError):
        frames(pool, ("b", 0), frame)
    assert len(pool) == 0


# ---------------------------------------------------------------- models that are given videos


def as_input(image, video, index, **size):
    size = size or {"height": SIZE[0], "width": SIZE[1]}
    return {"image": image, "video_id": video, "frame_index": index, **size}


def test_a_model_runs_videos_that_come_together_as_one_graph(folder, built, device, monkeypatch):
    eager, graph = sides(folder, built, device, *DIFFERENCE, learns=False)
    videos = {name: list(clip(device, 5, seed=seed)) for seed, name in enumerate("abc")}
    for side in (eager, graph):
        side.model.streams.clear()
    for index, names in enumerate(["ab", "abc", "ca", "b", "cba"]):
        inputs = [as_input(videos[name][index], name, index) for name in names]
        # Two frames of one video, one after the other.
        inputs += [as_input(videos["a"][0], "a", None)] if index == 4 else []
        outputs = [side.model(inputs) for side in (eager, graph)]
        for expected, found in zip(*outputs, strict=True):
            assert_same_output(expected, found)
    (batch,) = set(graph.model.streams._streams.values())
    assert batch.num_streams == 4 and batch.graph is not None
    assert sorted(batch.counts) == [0, 3, 4, 5], "it grew at the second tick, and went on"
    assert all(stream.num_streams == 1 for stream in eager.model.streams._streams.values())


def test_every_frame_teaches_as_if_it_came_alone(folder, built, device):
    opts = ("MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY", 2)
    side = Side(folder, built, device, *opts, graph=True)
    model = side.model
    model.streams.clear()
    learner = model.learner = OnlineLearner(side.cfg, model.policy)
    try:
        for index, image in enumerate(clip(device, 4)):
            model([as_input(image, "a", index), as_input(255 - image, "b", index)])
    finally:
        model.learner = None
    # But for the two first ones.
    assert learner.frames == 6 and model.streams._streams["a"].counts == [4, 4]


def test_outputs_of_other_sizes_are_other_batches(folder, built, device):
    side = Side(folder, built, device, *DIFFERENCE, graph=True, learns=False)
    model = side.model
    model.streams.clear()
    for index, image in enumerate(clip(device, 3)):
        large = [as_input(image, name, index) for name in "ab"]
        small = [as_input(image, name, index, height=64, width=128) for name in "cd"]
        outputs = model([large[0], small[0], large[1], small[1]])
        sizes = [output["instances"].image_size for output in outputs]
        assert sizes == [SIZE, (64, 128)] * 2
    batches = set(model.streams._streams.values())
    assert len(batches) == 2 and all(batch.graph is not None for batch in batches)
    assert [sorted(batch.counts) for batch in batches] == [[3, 3]] * 2
    torch.testing.assert_close(outputs[0]["instances"].scores, outputs[2]["instances"].scores)
