"""Frames of a model with motion: the parts that move, and those that stay."""

import math
from types import SimpleNamespace

import pytest
import torch

from blockcopy_d2.modeling import BlockCopyVideoModel
from blockcopy_d2.motion import PolicyMotion, field_size, move
from blockcopy_d2.policy import (
    DetectionMasks,
    EveryKthFrame,
    FrameDifference,
    NoBlocks,
    move_detections,
)
from tests.modeling.test_meta_arch import assert_same, build_pair

BLOCK, SIZE, CELL = 64, (128, 192), 16


class TaggedMotion:
    """An estimator that reads the motion from the upper left pixels of a frame."""

    cell_size = CELL

    def features(self, images, image_sizes=None, *, codec=None, out=None):
        return SimpleNamespace(size=tuple(images.shape[-2:]), levels=[images[:, :, :1, :2].clone()])

    def estimate(self, current, previous, *, out=None, workspace=None):
        (tag,) = current.levels
        field = tag[:, 0, 0, :, None, None].expand(-1, -1, *field_size(current.size, CELL))
        return torch.zeros_like(field, dtype=torch.float32).copy_(field)


@pytest.fixture(scope="module", params=["mask-rcnn", "semantic"])
def pair(request):
    return build_pair(request.param)


@pytest.fixture
def model(pair):
    """A model with motion, no cuts, and a policy that executes nothing."""
    model, _ = pair
    options = {
        "scene_cut": 0.0,
        "policy": NoBlocks(),
        "motion": TaggedMotion(),
    }
    before = {name: getattr(model, name) for name in options}
    for name, value in options.items():
        setattr(model, name, value)
    yield model
    for name, value in before.items():
        setattr(model, name, value)


def clip(vectors, seed=0):
    """Frames of a picture that moves by minus each of the vectors (dx, dy)."""
    torch.manual_seed(seed)
    # Smooth enough to move by 16 pixels without a cut.
    coarse = 100 + 40 * torch.rand(1, 3, 5, 7)
    world = torch.nn.functional.interpolate(coarse, scale_factor=64, mode="bilinear")[0]
    x = y = 64
    frames = []
    for dx, dy in [(0, 0), *vectors]:
        if math.isfinite(dx):
            x, y = x + dx, y + dy
        image = world[:, y : y + SIZE[0], x : x + SIZE[1]].clone()
        image[:, 0, 0], image[:, 0, 1] = dx, dy
        frames.append({"image": image, "height": SIZE[0], "width": SIZE[1]})
    return frames


def test_a_still_picture_is_as_without_motion_bit_for_bit(model):
    model.policy = FrameDifference(target=0.3)
    frames = clip([(0, 0)] * 3)
    frames[2]["image"][:, 64:100, 64:100] = 200
    moving = model.init_state()
    with_motion = [model.step(x, moving) for x in frames]
    model.motion = None
    still = model.init_state()
    without = [model.step(x, still) for x in frames]
    for one, other in zip(with_motion, without):
        assert_same(one.output, other.output)
        assert torch.equal(one.grid.active, other.grid.active)
    assert torch.equal(moving.frame_state, still.frame_state)
    assert torch.equal(moving.painted, still.painted)
    assert without[-1].field is None and not with_motion[-1].field.any()


def test_frame_state_and_output_move_with_the_picture(model):
    frames = clip([(16, 0)])
    stream = model.init_state()
    first = model.step(frames[0], stream)
    state, painted = stream.frame_state.clone(), stream.painted.clone()
    second = model.step(frames[1], stream)
    step = 16 * model.task.pixels_per_block // BLOCK
    assert torch.equal(stream.frame_state[..., :-step], state[..., step:])
    assert not second.grid.active.any() and (second.field[:, 0] == 16).all()
    # The policy saw the painted output at its new place.
    assert torch.equal(second.observation.output[..., :-step], painted[..., step:])
    before, after = first.detections, second.previous_detections
    if isinstance(before, DetectionMasks):
        assert torch.equal(after.masks[..., :-step], before.masks[..., step:])
    else:
        assert torch.equal(after[..., :-step], before[..., step:])


def test_output_moves_between_executed_frames(model):
    """A network that runs every second frame shows its detections at their present places."""
    model.policy = EveryKthFrame(period=2)
    frames = clip([(16, 16), (0, 0)])
    stream = model.init_state()
    first = model.step(frames[0], stream)
    between = model.step(frames[1], stream)
    assert between.executed == 0
    if "sem_seg" in first.output:
        expected = first.output["sem_seg"][:, 16 + 8 : -8, 16 + 8 : -8]
        found = between.output["sem_seg"][:, 8 : -16 - 8, 8 : -16 - 8]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert model.step(frames[2], stream).executed == 1


def test_gain_is_against_the_moved_output(model):
    frames = clip([(16, 0)])
    stream = model.init_state()
    model.step(frames[0], stream)
    result = model.step(frames[1], stream)
    gain = model.information_gain(result)[..., :-1]
    previous = result.previous_detections
    again = model.task.block_gain(result.detections, previous, result.grid.shape)
    assert torch.equal(gain[0], again[..., :-1])
    if not isinstance(previous, DetectionMasks):
        # Nothing ran and all moved: only the border is new.
        assert gain.max() < 1e-3


@pytest.mark.parametrize("what", ["first", "cut", "nan", "absent"])
def test_nothing_moves_where_there_is_no_frame_before(model, what):
    model.scene_cut = 0.33
    clips = clip([(0, 0), (16, 0)], seed=1), clip([(0, 0), (16, 0)], seed=1)
    batch = model.init_state(2)
    for tick in range(2):
        model.step_batch([frames[tick] for frames in clips], batch)
    last = [frames[2] for frames in clips]
    if what == "first":
        batch.reset(1)
    elif what == "cut":
        last[1] = dict(last[1], image=255 - last[1]["image"])
        last[1]["image"][:, 0, :2] = 16
    elif what == "nan":
        last[1]["image"][:, 5, 5] = torch.nan
    else:
        last[1] = None
    state = batch.frame_state.clone()
    features = batch.motion_features.levels[0].clone()
    results = model.step_batch(last, batch)
    assert (results[0].field[:, 0] == 16).all()
    if what == "absent":
        assert results[1] is None
        assert torch.equal(batch.frame_state[1], state[1])
        assert torch.equal(batch.motion_features.levels[0][1], features[1])
        assert not torch.equal(batch.motion_features.levels[0][0], features[0])
    else:
        assert not results[1].field.any()
        assert results[1].grid.active.all() and not results[0].grid.active.any()


def test_a_batch_is_its_streams_one_by_one(model):
    clips = [clip([(16, 0), (3, -5)], seed=2), clip([(-8, 16), (0, 0)], seed=3)]
    batch, alone = model.init_state(2), [model.init_state() for _ in clips]
    for tick in range(3):
        together = model.step_batch([frames[tick] for frames in clips], batch)
        for n, result in enumerate(together):
            expected = model.step(clips[n][tick], alone[n])
            torch.testing.assert_close(batch.frame_state[n : n + 1], alone[n].frame_state)
            if tick:
                assert torch.equal(result.field, expected.field)
    maps = list(feature_maps(batch))
    for n, stream in enumerate(alone):
        for found, expected in zip(maps, feature_maps(stream), strict=True):
            assert (found[n : n + 1] - expected).norm() <= 1e-4 * expected.norm()


def feature_maps(stream):
    for caches in stream.features.all_caches():
        yield from (caches.maps[index].pixels for index in sorted(caches.maps))


def test_streams_that_change_size_start_anew(model):
    stream = model.init_state()
    model.step(clip([])[0], stream)
    small = {"image": torch.rand(3, 64, 128), "height": 64, "width": 128}
    result = model.step(small, stream)
    assert result.is_first and result.field is None


def test_cells_fit_blocks(pair):
    model, _ = pair
    estimator = TaggedMotion()
    estimator.cell_size = 128
    with pytest.raises(ValueError, match="Cells of 128 pixels do not fit blocks of 64"):
        BlockCopyVideoModel(
            base=model.base,
            policy=model.policy,
            task=model.task,
            block_size=BLOCK,
            max_streams=1,
            motion=estimator,
        )


@pytest.mark.parametrize("name", ["DISFlow", "BlockMatching"])
def test_models_built_from_a_config_follow_a_picture(name):
    """A camera that pans: nothing runs, and detections are at their present places."""
    model, _ = build_pair(
        "semantic",
        "MODEL.BLOCKCOPY.MOTION.NAME", name,
        "MODEL.BLOCKCOPY.MOTION.MAPS", "all",
        "MODEL.BLOCKCOPY.POLICY.NAME", "NoBlocks",
    )  # fmt: skip
    assert model.cache_mover.maps == "all" and model.cache_mover.max_stride == 64
    frames = clip([(8, 0)] * 3)
    stream = model.init_state()
    for inputs in frames:
        inputs["image"][:, :1, :2] = inputs["image"][:, 1:2, :2]
        inputs["image"] += 20 * torch.sin(inputs["image"])  # something to see
        result = model.step(inputs, stream)
    inner = result.field[..., 1:-1, 1:-2]
    assert (inner[:, 0] - 8).abs().mean() < 2 and inner[:, 1].abs().mean() < 2
    assert not result.executed and stream.graph is None


@pytest.mark.parametrize("kind, maps", [("semantic", "all"), ("retinanet", "outputs")])
def test_the_task_tells_which_maps_are_worth_moving(kind, maps):
    model, _ = build_pair(kind, "MODEL.BLOCKCOPY.MOTION.NAME", "BlockMatching")
    assert model.options.moved_maps == "auto" and model.cache_mover.maps == maps
    other = "all" if maps == "outputs" else "outputs"
    model.moved_maps = other
    assert model.cache_mover.maps == other


def test_without_motion_there_is_none(pair):
    model, _ = pair
    assert model.motion is None and model.cache_mover is None


# ---------------------------------------------------------------- policy resolution


@pytest.mark.parametrize("stride", [0.5, 1.0, 2.0, 4.0, 8.0])
def test_maps_at_policy_resolution_move_as_defined(stride):
    size = (32, 64)
    rows, columns = (math.ceil(n * stride / 16) for n in size)
    field = 6 * torch.randn(2, 2, rows, columns)
    field[:, :, :, columns // 2 :] = 0
    x = torch.randn(2, 5, *size)
    motion = PolicyMotion(field, cell_size=16, stride=stride, size=size)
    moved = motion.move_maps(x)
    torch.testing.assert_close(moved, move(x, field, cell_size=16, stride=stride))
    halves = [part.move_maps(x[n : n + 1]) for n, part in enumerate(motion.split())]
    torch.testing.assert_close(torch.cat(halves), moved)
    still = PolicyMotion(torch.zeros_like(field), cell_size=16, stride=stride, size=size)
    assert torch.equal(still.move_maps(x), x)


def test_a_field_may_leave_the_last_blocks_uncovered():
    x = torch.randn(1, 2, 32, 64)
    motion = PolicyMotion(torch.full((1, 2, 5, 9), 4.0), cell_size=16, stride=4.0, size=(32, 64))
    moved = motion.move_maps(x)
    assert torch.equal(moved[..., 36:], x[..., 36:]) and torch.equal(
        moved[..., 20:, :], x[..., 20:, :]
    )
    assert torch.equal(moved[..., :19, :35], x[..., 1:20, 1:36])


def test_masks_and_boxes_move_with_their_pixels():
    masks = torch.zeros(3, 32, 64, dtype=torch.bool)
    masks[0, 8:16, 8:16] = masks[1, 20:28, 40:48] = True
    boxes = torch.tensor([[64.0, 64, 128, 128], [320, 160, 384, 224], [0, 0, 1, 1]])
    seen = DetectionMasks(
        masks, torch.ones(3), torch.zeros(3, dtype=torch.long), boxes, box_scale=(2.0, 2.0)
    )
    field = torch.zeros(1, 2, 8, 16)
    field[0, 0, :, :8], field[0, 1, :, :8] = -12, 8
    moved = move_detections(seen, PolicyMotion(field, cell_size=16, stride=4.0, size=(32, 64)))
    expected = torch.zeros_like(masks)
    expected[0, 6:14, 11:19] = expected[1, 20:28, 40:48] = True
    assert torch.equal(moved.masks, expected)
    assert moved.boxes.tolist() == [[88, 48, 152, 112], [320, 160, 384, 224], [0, 0, 1, 1]]
    assert torch.equal(seen.masks, masks)
