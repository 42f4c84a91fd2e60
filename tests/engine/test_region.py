"""Regions: blocks that always run, never run, or run if the policy picks them."""

import numpy as np
import pytest
import torch

from blockcopy_d2.engine.defaults import load_config
from blockcopy_d2.engine.predictor import FrameMapper, VideoPredictor
from blockcopy_d2.engine.region import Region
from blockcopy_d2.engine.runs import build_learner
from blockcopy_d2.modeling import VideoOptions
from blockcopy_d2.policy import build_policy
from blockcopy_d2.resources import config_path
from tests.engine.test_predictor import frames
from tests.small_model import CONFIG, small_model_opts

# Pictures of 96x160 become 128x213 pixels: 2x4 blocks of 64, each 48x48 pixels of the picture.
PICTURE, INPUT, BLOCK = (96, 160), (128, 213), 64
LEFT = [(0, 0), (48, 0), (48, 96), (0, 96)]


def drawn(*rows):
    return torch.tensor([[mark == "#" for mark in row] for row in rows])


def blocks(**parts):
    region = Region(**parts).blocks(PICTURE, INPUT, BLOCK)
    return region.always, region.never


def test_polygons_are_in_pixels_of_the_picture():
    always, never = blocks(always=LEFT)
    assert torch.equal(always, drawn("#...", "#...")) and not never.any()
    one_more = [(0, 0), (49, 0), (49, 96), (0, 96)]
    assert torch.equal(blocks(always=one_more)[0], drawn("##..", "##.."))
    assert torch.equal(blocks(area=one_more)[1], drawn("..##", "..##"))
    assert torch.equal(blocks(never=one_more)[1], drawn("#...", "#..."))
    triangle = [(-1000, -1000), (70, 20), (-100, 200)]
    assert torch.equal(blocks(always=np.array(triangle))[0], drawn("##..", "#..."))


def test_a_polygon_may_cross_itself():
    """Its parts on both sides of the crossing cancel in a signed area."""
    bow_tie = [(0, 0), (160, 96), (160, 0), (0, 96)]
    assert torch.equal(blocks(area=bow_tie)[1], drawn("....", "...."))
    small = [(0, 0), (30, 40), (30, 0), (0, 40)]
    assert torch.equal(blocks(always=small)[0], drawn("#...", "...."))


def test_several_polygons_are_one_part():
    top_right = [(150, 0), (400, 0), (400, 10), (150, 10)]
    assert torch.equal(blocks(always=[LEFT, top_right])[0], drawn("#..#", "#..."))


def test_masks_are_as_large_as_the_picture():
    mask = np.zeros(PICTURE, dtype=np.uint8)
    mask[95, 60] = 255
    assert torch.equal(blocks(always=torch.from_numpy(mask > 0))[0], drawn("....", ".#.."))
    assert torch.equal(blocks(area=mask)[1], ~drawn("....", ".#.."))
    assert torch.equal(blocks(never=np.ones(PICTURE))[1], drawn("####", "####"))


def test_always_counts_more_than_the_area():
    right = [(96, 0), (160, 0), (160, 96), (96, 96)]
    always, never = blocks(area=right, always=LEFT)
    assert torch.equal(always, drawn("#...", "#...")) and torch.equal(never, drawn(".#..", ".#.."))


@pytest.mark.parametrize(
    "part, message",
    [
        ([], "expected a mask"),
        ("polygon", "expected a mask"),
        (3, "expected a mask"),
        (np.zeros((0, 160)), "empty mask"),
        (np.full(PICTURE, np.nan), "other values than 0 and 1"),
        ([(0, 0), (1, 1)], "x and y of three corners"),
        ([(0, 0, 1), (1, 1, 1), (0, 1, 1)], "x and y of three corners"),
        ([LEFT, []], "x and y of three corners"),
        ([(0, 0), (1, float("nan")), (1, 1)], "not finite"),
        ([(-1e308, 0), (1e308, 0), (0, 9)], "further away than 1e\\+09"),
        ([(0.2, 0.2), (0.8, 0.2), (0.8, 0.8)], "within one pixel.*multiply shares of it by its"),
        ([(0, 0), (5, 5), (9, 9)], "no area"),
    ],
)
def test_what_is_no_region_is_refused_at_once(part, message):
    for name in ("area", "always", "never"):
        with pytest.raises(ValueError, match=f"{name} of a region.*{message}"):
            Region(**{name: part})


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"never": np.ones((10, 20))}, "a mask of 20x10, the picture is 160x96"),
        ({"always": [(200, 0), (300, 0), (300, 50)]}, "no pixel of the picture"),
        ({"area": np.zeros(PICTURE)}, "no pixel of the picture"),
        ({"always": LEFT, "never": LEFT}, "overlap, for instance at pixel x=0, y=0"),
    ],
)
def test_what_does_not_fit_the_picture_says_so(parts, message):
    with pytest.raises(ValueError, match=message):
        blocks(**parts)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Predictors with one model, which is traced once; each with a policy of its own."""
    folder, built = tmp_path_factory.mktemp("weights"), []

    def build(*opts):
        switch = ["MODEL.BLOCKCOPY.ENABLED", "True", "MODEL.BLOCKCOPY.POLICY.NAME", "ExpectedGain"]
        cfg = load_config(config_path(CONFIG), [*small_model_opts(folder), *switch, *opts])
        if not built:
            built.append(VideoPredictor(cfg).model)
        (model,) = built
        model.policy = build_policy(cfg, num_classes=model.task.num_classes)
        model.learner = build_learner(cfg, model.policy)
        model.options = VideoOptions.from_config(cfg)
        return VideoPredictor(model=model, mapper=FrameMapper(cfg))

    return build


def executed(predictor, count=5):
    """The blocks of the picture that were executed in each frame, after the first."""
    results = [result for _, result in predictor.stream(frames(count, PICTURE))]
    assert results[0].grid.fraction == 1
    return torch.stack([result.grid.active[0, :2, :4] for result in results[1:]])


def test_videos_have_regions_of_their_own(build):
    predictor = build("MODEL.BLOCKCOPY.TARGET", "0.5")
    predictor.set_region(never=LEFT)
    predictor.set_region(always=LEFT, video=1)
    ticks = list(predictor.streams([frames(4, PICTURE) for _ in range(2)]))
    for tick in ticks[1:]:
        (_, first), (_, second) = tick
        assert not first.grid.active[0, :2, 0].any() and second.grid.active[0, :2, 0].all()
        # Half of 8 blocks, however many are forced.
        assert first.grid.active.sum() == second.grid.active.sum() == 4
        assert first.region.never[:, 0].all() and second.region.always[:, 0].all()
    with pytest.raises(ValueError, match="Video 1 has a region, but there are 1 videos"):
        next(predictor.streams([frames(2, PICTURE)]))


def test_a_region_counts_from_the_next_frame_on(build):
    predictor = build("MODEL.BLOCKCOPY.TARGET", "0.25")
    video = list(frames(4, PICTURE))
    free = predictor(video[0])
    assert free.region is None
    predictor.set_region(LEFT)
    assert not predictor(video[1]).grid.active[0, :, 1:].any()
    predictor.set_region(always=[(100, 10), (110, 10), (110, 20)])
    assert predictor(video[2]).grid.active[0, 0, 2]
    predictor.set_region()
    assert predictor(video[3]).region is None


def test_without_a_region_nothing_is_different(build):
    plain = build()
    expected = [result["instances"] for _, result in plain.stream(frames(5, PICTURE))]
    predictor = build()
    predictor.set_region(np.ones(PICTURE, dtype=bool))
    for (_, result), other in zip(predictor.stream(frames(5, PICTURE)), expected, strict=True):
        assert torch.equal(result["instances"].scores, other.scores)
        assert torch.equal(result["instances"].pred_boxes.tensor, other.pred_boxes.tensor)


@pytest.mark.parametrize("share, count", [(0.5, 4), (0.1, 2), (1.0, 6)])
def test_the_budget_counts_what_always_runs(build, share, count):
    """2 of 8 blocks always run, 2 never: the policy fills the rest of the target, if it can."""
    predictor = build("MODEL.BLOCKCOPY.TARGET", str(share))
    right = [(144, 0), (160, 0), (160, 96), (144, 96)]
    predictor.set_region(always=LEFT, never=right)
    active = executed(predictor)
    assert active[:, :, 0].all() and not active[:, :, 3].any()
    assert (active.sum(dim=(1, 2)) == count).all()


@pytest.mark.parametrize(
    "name", ["AllBlocks", "NoBlocks", "RandomBlocks", "FrameDifference", "LearnedPolicy"]
)
def test_every_policy_keeps_to_the_region(build, name):
    predictor = build("MODEL.BLOCKCOPY.POLICY.NAME", name)
    predictor.set_region([(0, 0), (96, 0), (96, 96), (0, 96)], always=LEFT)
    active = executed(predictor, 4)
    assert active[:, :, 0].all() and not active[:, :, 2:].any()


def test_refreshes_stay_within_the_region(build):
    """Blocks that never run must not take the turns of those that do."""
    opts = ["MODEL.BLOCKCOPY.POLICY.NAME", "NoBlocks", "MODEL.BLOCKCOPY.REFRESH_EVERY", "4"]
    predictor = build(*opts)
    predictor.set_region(never=LEFT)
    active = executed(predictor, 13)
    assert not active[:, :, 0].any()
    for start in range(len(active) - 3):
        assert active[start : start + 4, :, 1:].any(dim=0).all()
