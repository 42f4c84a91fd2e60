"""Regions: the same operator by operator, as a graph, and in a batch; without a new capture."""

import pytest
import torch

from blockcopy_d2.modeling import BlockRegion
from tests.modeling.running.sides import SIZE, assert_same, clip, sides

ROWS, COLUMNS = 2, 4
MOTION = ("MODEL.BLOCKCOPY.MOTION.NAME", "BlockMatching")
DIFFERENCE = ("MODEL.BLOCKCOPY.POLICY.NAME", "FrameDifference", "MODEL.BLOCKCOPY.TARGET", 0.5)
EXPECTED = ("MODEL.BLOCKCOPY.POLICY.NAME", "ExpectedGain", "MODEL.BLOCKCOPY.TARGET", 0.5)


def region(always=(), never=()):
    masks = torch.zeros(2, ROWS, COLUMNS, dtype=torch.bool)
    for mask, blocks in zip(masks, (always, never), strict=True):
        for row, column in blocks:
            mask[row, column] = True
    return BlockRegion(always=masks[0], never=masks[1])


def as_input(image, region):
    found = {"image": image, "height": SIZE[0], "width": SIZE[1]}
    return found if region is None else {**found, "region": region}


REGIONS = [None, None, region([(0, 3)], [(1, 0), (1, 1)]), region([(1, 1)]), None, None]


@pytest.mark.parametrize("opts", [DIFFERENCE, (*EXPECTED, *MOTION)], ids=["in-place", "moved"])
def test_eager_graph_and_batch_are_the_same(folder, built, device, opts):
    eager, graph = sides(folder, built, device, *opts, learns=False)
    batch, captures = graph.model.init_state(2), []
    for number, (image, here) in enumerate(zip(clip(device, 6), REGIONS, strict=True)):
        expected = eager.model.step(as_input(image, here), eager.stream)
        found = graph.model.step(as_input(image, here), graph.stream)
        assert_same((expected, {}), (found, {}), f"frame {number}")
        # The other stream of the batch has the region of another frame.
        other = REGIONS[-1 - number]
        inputs = [as_input(image, here), as_input(image, other)]
        in_batch = graph.model.step_batch(inputs, batch)
        for result, its in zip(in_batch, (here, other), strict=True):
            if its is not None and number:
                active = result.grid.active[0].cpu()
                assert active[its.always].all() and not active[its.never].any()
        assert torch.equal(in_batch[0].grid.active, expected.grid.active)
        captures.append(dict(graph.stream.graph._captures))
    assert all(x == captures[1] for x in captures[2:]), "captured anew"


def test_a_block_that_never_runs_keeps_its_features(folder, built, device):
    (side, _) = sides(folder, built, device, "MODEL.BLOCKCOPY.POLICY.NAME", "AllBlocks")
    corner = region(never=[(0, 0)])
    images = list(clip(device, 3))
    side.model.step(as_input(images[0], corner), side.stream)

    def corners():
        """Pixels of the first block of each map: 64 of the picture's."""
        caches = side.stream.features.all_caches()
        maps = [x.pixels for cache in caches for x in cache.maps.values()]
        return [x[:, : 64 * x.shape[1] // SIZE[0], : 64 * x.shape[2] // SIZE[1]] for x in maps]

    before = [x.clone() for x in corners()]
    assert len(before) > 5
    for image in images[1:]:
        result = side.model.step(as_input(image, corner), side.stream)
        assert result.grid.active.sum() == ROWS * COLUMNS - 1
    assert all(torch.equal(a, b) for a, b in zip(corners(), before, strict=True))
    side.model.step(as_input(images[0], None), side.stream)
    side.model.step(as_input(images[1], None), side.stream)
    assert not all(torch.equal(a, b) for a, b in zip(corners(), before, strict=True))


def test_cuts_and_many_blocks_run_what_they_must(folder, built, device):
    opts = ("MODEL.BLOCKCOPY.SCENE_CUT", 0.3, "MODEL.BLOCKCOPY.DENSE_ABOVE", 0.6)
    policy = ("MODEL.BLOCKCOPY.POLICY.NAME", "FrameDifference", "MODEL.BLOCKCOPY.TARGET", 0.7)
    here = region(never=[(0, 0)])
    for side in sides(folder, built, device, *opts, *policy):
        first, second = clip(device, 2)
        shares = [
            side.model.step(as_input(image, here), side.stream).executed
            for image in (first, second, second // 3, second)
        ]
        # The last frame is another cut.
        assert shares == [1, 7 / 8, 1, 1]


@pytest.mark.parametrize(
    "wrong, message",
    [
        (torch.zeros(ROWS, COLUMNS, dtype=torch.bool), "expected a BlockRegion"),
        (BlockRegion(*torch.zeros(2, 3, 4, dtype=torch.bool)), r"\(3, 4\) blocks, the picture"),
    ],
)
def test_what_does_not_fit_is_refused(folder, built, device, wrong, message):
    (side, _) = sides(folder, built, device)
    with pytest.raises(ValueError, match=message):
        side.model.step(as_input(next(clip(device, 1)), wrong), side.stream)


def test_a_region_is_of_blocks():
    with pytest.raises(ValueError, match=r"always of a region is torch.float32 \(2, 4\)"):
        BlockRegion(always=torch.zeros(2, 4), never=torch.zeros(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="no block in common"):
        region([(0, 0)], [(0, 0)])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_new_region_waits_for_nothing(folder, built):
    """The host goes on while the device is far behind, and nothing is captured anew."""
    (_, side) = sides(folder, built, "cuda", *EXPECTED, learns=False)
    images, given = list(clip("cuda", 8)), [None, None, None, *REGIONS[2:4], None, *REGIONS[2:4]]
    results = []
    for number, (image, here) in enumerate(zip(images, given, strict=True)):
        torch.cuda.synchronize()
        torch.cuda._sleep(200_000_000)
        behind = torch.cuda.current_stream().record_event()
        results.append(side.model.step(as_input(image, here), side.stream))
        if number == 4:
            captures = dict(side.stream.graph._captures)
        # Pinned memory is allocated for the first region.
        assert number < 5 or not behind.query(), "the host waited for the device"
    for result, here in list(zip(results, given, strict=True))[1:]:
        active = result.grid.active[0].cpu()
        assert here is None or (active[here.always].all() and not active[here.never].any())
        assert active.sum() == ROWS * COLUMNS // 2
    assert side.stream.graph._captures == captures
