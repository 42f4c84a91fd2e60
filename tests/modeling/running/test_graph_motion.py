"""
Frames with motion as graphs have the results of frames run operator by operator. On a CPU the same
functions are called instead of replayed.
"""

import pytest
import torch

from blockcopy_d2.modeling import FrameGraph
from blockcopy_d2.modeling.running.history import tensors_of
from blockcopy_d2.motion import moved_cells
from blockcopy_d2.policy import DetectionMasks
from blockcopy_d2.sparse import BlockGrid
from tests.modeling.running.networks import NETWORKS
from tests.modeling.running.sides import BLOCK, SIZE, both, panning_clip, sides

MOTION = ("MODEL.BLOCKCOPY.MOTION.NAME", "BlockMatching")
VECTORS = [(8, 0), (5, -3), (0, 0), (-6, 8), (2, 2)]


def share_of_moved_cells(result):
    return moved_cells(result.field).float().mean().item()


def compare_histories(eager, graph):
    for name in ("frame", "frame_state", "painted", "active", "age", "broken", "frame_index"):
        expected, found = (getattr(side.stream, name) for side in (eager, graph))
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    features = (side.stream.motion_features for side in (eager, graph))
    for expected, found in zip(*(x.levels for x in features), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.usefixtures("replayed_lessons")
def test_a_clip(folder, built, device):
    opts = ("MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY", 2, "MODEL.BLOCKCOPY.LEARNER.LR", 0.01)
    eager, graph = sides(folder, built, device, *MOTION, *opts)
    moved = []
    for image in panning_clip(device, [*VECTORS, (4, 4)]):
        (expected, _), (found, _) = both(eager, graph, image)
        moved.append(0 if expected.is_first else share_of_moved_cells(expected))
        if not expected.is_first:
            # Information gain compares with the moved output.
            same = (found.previous_detections.masks == expected.previous_detections.masks).float()
            assert same.mean() > 0.999
    assert moved[0] == 0 and min(moved[1], moved[2]) > 0.4 and moved[3] < 0.2
    compare_histories(eager, graph)
    assert graph.learner.frames == eager.learner.frames == len(moved) - 1


@pytest.mark.parametrize("policy, maps", [("NoBlocks", "all"), ("MovedDifference", "outputs")])
def test_policies_that_do_not_learn(folder, built, device, policy, maps):
    opts = ("MODEL.BLOCKCOPY.POLICY.NAME", policy, "MODEL.BLOCKCOPY.MOTION.MAPS", maps)
    eager, graph = sides(folder, built, device, *MOTION, *opts)
    for image in panning_clip(device, VECTORS):
        both(eager, graph, image)
    compare_histories(eager, graph)
    for one, other in zip(*(list(feature_maps(side)) for side in (eager, graph)), strict=True):
        torch.testing.assert_close(other, one, atol=1e-3, rtol=1e-3)


def feature_maps(side):
    for caches in side.stream.features.all_caches():
        yield from (caches.maps[index].pixels for index in sorted(caches.maps))


def test_nothing_moves_at_cuts_in_new_videos_and_around_broken_frames(folder, built, device):
    opts = ("MODEL.BLOCKCOPY.SCENE_CUT", 0.2, "MODEL.BLOCKCOPY.POLICY.NAME", "MovedDifference")
    eager, graph = sides(folder, built, device, *MOTION, *opts)
    first = [image.float() for image in panning_clip(device, VECTORS)]
    broken = first[3].clone()
    broken[:, 5, 5] = torch.nan
    other = [90 + image.float() for image in panning_clip(device, VECTORS[:2], seed=1)]
    shares, whole = [], []
    for image in [*first[:3], broken, first[3], first[4], *other]:
        (expected, _), (found, _) = both(eager, graph, image)
        shares.append(0 if expected.is_first else share_of_moved_cells(found))
        whole.append(found.grid.is_full)
    # A first frame, a broken one, the one after it, and a cut.
    assert [share > 0 for share in shares] == [
        False,
        True,
        True,
        False,
        False,
        True,
        False,
        True,
        True,
    ]
    assert whole == [not share for share in shares]
    for side in (eager, graph):
        side.stream.reset()
    for image in other:
        (expected, _), (found, _) = both(eager, graph, image)
        assert (found.field is None) == found.is_first
    assert share_of_moved_cells(found) > 0
    compare_histories(eager, graph)


def test_grids_of_the_caller_and_a_padded_canvas(folder, built, device):
    size = (100, 230)
    eager, graph = sides(folder, built, device, *MOTION, learns=False)
    generator = torch.Generator().manual_seed(0)
    for index, image in enumerate(panning_clip(device, VECTORS, size=size)):
        grid = None
        if index % 3:
            active = torch.rand(1, 2, 4, generator=generator) < 0.5
            layout = {"block_size": BLOCK, "image_size": graph.stream.canvas_size}
            grid = BlockGrid(active.to(device), **layout)
        both(eager, graph, image, grid)
    assert graph.stream.canvas_size != graph.stream.image_size
    compare_histories(eager, graph)


def test_a_fast_camera_is_no_cut_and_another_scene_is(folder, built, device):
    opts = ("MODEL.BLOCKCOPY.SCENE_CUT", 0.33, "MODEL.BLOCKCOPY.POLICY.NAME", "MovedDifference")
    pans = [list(panning_clip(device, [(16, 8)] * 2, seed=seed)) for seed in (0, 1)]
    frames = [((image.float() - 125) * 4 + 125).clamp(0, 255) for pan in pans for image in pan]
    cuts = {}
    for motion in ("none", "BlockMatching"):
        eager, graph = sides(folder, built, device, "MODEL.BLOCKCOPY.MOTION.NAME", motion, *opts)
        results = [both(eager, graph, image)[1][0] for image in frames]
        cuts[motion] = [bool(result.cut) for result in results]
    assert cuts == {
        "none": [False, True, True, True, True, True],
        "BlockMatching": [False, False, False, True, False, False],
    }


@pytest.mark.parametrize("name", ["swiftnet-18", "csp", "panoptic"])
def test_networks(folder, built, device, name):
    policy = ("MODEL.BLOCKCOPY.POLICY.NAME", "MovedDifference")
    eager, graph = sides(folder, built, device, *MOTION, *policy, network=NETWORKS[name])
    for image in panning_clip(device, VECTORS[:3]):
        (expected, _), (found, _) = both(eager, graph, image)
        if expected.is_first:
            continue
        pairs = expected.previous_detections, found.previous_detections
        pairs = zip(*(x if isinstance(x, tuple) else (x,) for x in pairs), strict=True)
        for expected, found in pairs:
            if not isinstance(expected, DetectionMasks):
                torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
            elif expected.boxes is None:
                kept = found.masks[found.scores > 0]
                assert (kept == expected.masks).float().mean() > 0.999
            else:
                kept = found.scores > 0
                close = {"atol": 0.1, "rtol": 1e-3}
                torch.testing.assert_close(found.boxes[kept], expected.boxes, **close)


def test_warming_up_leaves_the_caches_as_they_were(folder, built, device):
    """Frames run a few times before they are captured; their caches must move only once."""
    _, graph = sides(folder, built, device, *MOTION, learns=False)
    *images, last = panning_clip(device, VECTORS)
    for image in images:
        graph.frame(image)
    recorded, stream = graph.stream.graph, graph.stream
    recording, memory = recorded._latest, recorded.memory
    recording.image.copy_(last)
    before = [x.clone() for x in feature_maps(graph)]
    recording._functions, recording._warming = {}, True
    for part in ("infer", "finish", "observe"):
        timer = graph.frame(images[-1])[0].timer if device == "cuda" else _NoTimer()
        recording.run(part, graph.model, stream, memory, timer)
    assert share_of_moved_cells(recording) > 0
    for one, other in zip(before, feature_maps(graph), strict=True):
        assert torch.equal(one.nan_to_num(), other.nan_to_num())


class _NoTimer:
    def now(self):
        return 0.0

    def add(self, name, start, end):
        assert name


def test_options_change_in_the_middle(folder, built, device):
    """A GPU then captures a frame in the middle of a video."""
    policy = ("MODEL.BLOCKCOPY.POLICY.NAME", "MovedDifference", "MODEL.BLOCKCOPY.MOTION.MAPS")
    eager, graph = sides(folder, built, device, *MOTION, *policy, "all")
    for index, image in enumerate(panning_clip(device, VECTORS)):
        both(eager, graph, image)
        if index == 2:
            for side in (eager, graph):
                side.model.refresh_every = 100
    for one, other in zip(*(list(feature_maps(side)) for side in (eager, graph)), strict=True):
        torch.testing.assert_close(other, one, atol=1e-3, rtol=1e-3)


def test_motion_that_is_switched_goes_on_operator_by_operator(folder, built, device):
    eager, graph = sides(folder, built, device, *MOTION, learns=False)
    motion = graph.model.motion
    executed = []
    for index, image in enumerate(panning_clip(device, [*VECTORS, (3, 0)])):
        result, _ = graph.frame(image)
        executed.append(result.field is not None)
        assert (graph.stream.graph is not None) == (index < 3)
        if index == 2:
            graph.model.motion = None
        if index == 4:
            graph.model.motion = motion
    # The estimator's memory of a frame begins with the first frame it sees.
    assert executed == [False, True, True, False, False, False, True]
    graph.stream.reset()
    graph.frame(image)
    assert graph.stream.graph is not None


def test_estimators_that_wait_for_the_host_are_not_recorded(folder, built, device):
    pytest.importorskip("cv2")
    name = ("MODEL.BLOCKCOPY.MOTION.NAME", "DISFlow")
    _, graph = sides(folder, built, device, *name, learns=False)
    for image in panning_clip(device, VECTORS[:1], size=SIZE):
        result, _ = graph.frame(image)
    assert FrameGraph.of(graph.model, graph.stream) is None and share_of_moved_cells(result) > 0.4


def test_memory_has_a_place_for_all_of_it(folder, built, device):
    _, graph = sides(folder, built, device, *MOTION, learns=False)
    places = []
    for image in panning_clip(device, VECTORS):
        graph.frame(image)
        places.append([x.data_ptr() for x in tensors_of(graph.stream.history)])
    assert all(place == places[1] for place in places[1:])
    assert len(places[1]) == 9 + 3 + 4, "maps, masks with scores and classes, a pyramid"
