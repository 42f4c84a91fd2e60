"""Promises of every estimator, on the CPU."""

import sys

import pytest
import torch
from detectron2.config import get_cfg

from blockcopy_d2.config import add_blockcopy_config, check_blockcopy_config
from blockcopy_d2.motion import (
    BlockMatching,
    CodecVectors,
    DISFlow,
    MotionFeatures,
    build_motion,
    field_size,
)
from blockcopy_d2.motion.pyramid import luma_pyramid
from tests.motion.pictures import inner, moved_pair, texture

ESTIMATORS = {
    "BlockMatching 16": BlockMatching(cell_size=16),
    "BlockMatching 8": BlockMatching(cell_size=8),
    "BlockMatching 32": BlockMatching(cell_size=32),
    "DISFlow": DISFlow(cell_size=16),
    "DISFlow fast": DISFlow(cell_size=8, preset="fast"),
    "CodecVectors without vectors": CodecVectors(cell_size=16, fallback=DISFlow(cell_size=16)),
}
MATCHERS = [name for name in ESTIMATORS if name.startswith("BlockMatching")]


@pytest.fixture(params=ESTIMATORS)
def estimator(request):
    return ESTIMATORS[request.param]


def field_of(estimator, current, previous, sizes=None):
    return estimator.estimate(
        estimator.features(current, sizes), estimator.features(previous, sizes)
    )


@pytest.mark.parametrize("name", MATCHERS)
@pytest.mark.parametrize("shift", [1, 2, 3, 5, 8, 13, 16, 23, 24])
def test_block_matching_recovers_whole_pixels(name, shift):
    """
    Whole pixels of half the resolution to the bit, the ones between to a quarter pixel. In cells of
    8, which are 16 pixels of luma, a tenth may miss it, or count as still.
    """
    estimator = ESTIMATORS[name]
    share = 0.95 if estimator.cell_size > 8 else 0.9
    for dx, dy in ((shift, 0), (0, -shift), (-shift, shift)):
        field = inner(field_of(estimator, *moved_pair(320, 384, dx, dy)), estimator.cell_size)
        off = (field - torch.tensor([dx, dy]).view(1, 2, 1, 1)).abs()
        if shift % 2 == 0:
            assert (off.amax(1) == 0).float().mean() > share, (dx, dy)
        assert (off.amax(1) <= 0.25).float().mean() > share, (dx, dy)
        assert (off.flatten(2).median(2).values <= (0.25 if shift % 2 else 0)).all()


@pytest.mark.parametrize("dx, dy", [(0.75, 0), (1.25, -0.75), (-3.5, 6.25), (10.75, 2.5)])
def test_parts_of_pixels_are_recovered_to_a_quarter(estimator, dx, dy):
    field = inner(field_of(estimator, *moved_pair(320, 384, dx, dy, grain=4)), estimator.cell_size)
    median = field.flatten(2).median(2).values[0]
    assert (median - torch.tensor([dx, dy])).abs().max() <= 0.25


@pytest.mark.parametrize("dx, dy", [(4, 0), (-6, 10), (0, -12)])
def test_the_field_says_where_the_content_was(estimator, dx, dy):
    """source = position + field, with dx first."""
    current, previous = moved_pair(320, 384, dx, dy)
    field = (
        inner(field_of(estimator, current, previous), estimator.cell_size)
        .flatten(2)
        .median(2)
        .values[0]
    )
    assert (field - torch.tensor([dx, dy])).abs().max() <= 0.5


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_a_still_picture_gives_zeros(estimator, dtype):
    picture = texture(150, 205, streams=2).to(dtype)
    field = field_of(estimator, picture, picture.clone())
    assert field.dtype == torch.float32 and (field == 0).all()
    assert field.shape == (2, 2, *field_size((150, 205), estimator.cell_size))


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (37, 50), (64, 96)])
def test_bytes_and_real_numbers_give_the_same_luma(size):
    images = torch.randint(256, (3, 3, *size), dtype=torch.uint8)
    images[0] = 255
    sizes = torch.stack([torch.randint(1, n + 1, (3,)) for n in size], dim=1).int()
    for image_sizes in (None, sizes):
        given = luma_pyramid(images, image_sizes, out=MotionFeatures.empty(size, streams=3))
        expected = luma_pyramid(images.float(), image_sizes)
        for level, other in zip(given.levels, expected.levels, strict=True):
            assert torch.equal(level, other)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_luma_of_other_numbers_of_channels_is_their_mean(dtype):
    images = torch.randint(256, (2, 4, 37, 50)).to(dtype)
    for given in (images[:, :1], images):
        mean = given.float().mean(dim=1, keepdim=True)
        expected = luma_pyramid(mean.expand(-1, 3, -1, -1))
        for level, other in zip(luma_pyramid(given).levels, expected.levels, strict=True):
            assert torch.equal(level, other)


def test_noise_of_a_still_camera_gives_zeros(estimator):
    for grain in (6, 40, 400):  # down to no texture at all
        picture = texture(256, 256, grain=grain)
        noisy = [(picture + 4 * torch.randn(picture.shape)).clamp(0, 255) for _ in range(2)]
        moved = (field_of(estimator, *noisy) != 0).any(1).float().mean()
        assert moved <= 0.01, f"grain {grain}: {moved:.3f} of the cells moved"


@pytest.mark.parametrize("change", [-50, 20, 60, 150])
def test_light_that_changes_moves_nothing(estimator, change):
    """A lamp over a smooth wall, or a screen at the border: nothing comes from beyond the image."""
    before = torch.full((2, 3, 256, 320), 80.0) + 2 * torch.randn(2, 3, 256, 320)
    after = before.clone()
    after[0] += change
    after[1, :, :128, 200:] += change
    assert (field_of(estimator, after, before) == 0).all()


def test_only_what_moved_moves(estimator):
    """An object moves over a still background."""
    background, moving = texture(320, 384), texture(128, 128)
    current, previous = background.clone(), background.clone()
    previous[..., 96:224, 96:224] = moving
    current[..., 96:224, 104:232] = moving
    field = field_of(estimator, current, previous)
    c = estimator.cell_size
    inside = field[0, :, 160 // c, 160 // c]
    assert (inside - torch.tensor([-8.0, 0.0])).abs().max() <= 0.5
    far = torch.ones(field.shape[2:], dtype=torch.bool)
    far[64 // c : 256 // c, 64 // c : 272 // c + 1] = False
    assert (field[0, :, far] == 0).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 5), (7, 9), (15, 17), (33, 31), (65, 130)])
def test_any_size(estimator, size):
    current, previous = texture(*size), texture(*size)
    field = field_of(estimator, current, previous)
    assert field.shape == (1, 2, *field_size(size, estimator.cell_size))
    assert field.isfinite().all()
    assert (field_of(estimator, current, current) == 0).all()


def test_a_padded_canvas_changes_nothing(estimator):
    """Pixels beyond an image are ignored, and do not move."""
    current, previous = moved_pair(141, 203, 6, -4)
    alone = field_of(estimator, current, previous)
    canvas = torch.full((2, 3, 192, 256), float("nan"))
    canvas[1] = 255 * torch.rand(3, 192, 256)
    frames = [canvas.clone(), canvas.roll(1, 0)]
    for frame, picture in zip(frames, (current, previous)):
        frame[:, :, :141, :203] = picture
    sizes = torch.tensor([[141, 203]] * 2, dtype=torch.int32)
    padded = field_of(estimator, *frames, sizes)
    rows, columns = alone.shape[2:]
    assert torch.equal(padded[:, :, :rows, :columns], alone.expand(2, -1, -1, -1))
    padded[:, :, :rows, :columns] = 0
    assert (padded == 0).all()
    assert (alone != 0).any()


def test_images_of_different_sizes_share_a_canvas(estimator):
    pairs = {(96, 160): moved_pair(96, 160, 4, 2), (130, 101): moved_pair(130, 101, -8, 0)}
    frames = [torch.zeros(2, 3, 144, 176) for _ in range(2)]
    for stream, ((height, width), pair) in enumerate(pairs.items()):
        for frame, picture in zip(frames, pair):
            frame[stream, :, :height, :width] = picture
    together = field_of(estimator, *frames, torch.tensor(list(pairs), dtype=torch.int32))
    for field, pair in zip(together, pairs.values()):
        alone = field_of(estimator, *pair)
        rows, columns = alone.shape[2:]
        assert torch.equal(field[:, :rows, :columns], alone[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["current", "previous"])
def test_pixels_that_are_not_finite_give_zeros(estimator, value, where):
    current, previous = moved_pair(160, 192, 6, 2)
    clean = field_of(estimator, current, previous)
    frame = current if where == "current" else previous
    frame[0, 1, 70, 101] = value
    field = field_of(estimator, current, previous)
    c = estimator.cell_size
    assert field.isfinite().all()
    assert (field[0, :, 70 // c, 101 // c] == 0).all()
    # In DIS the value reaches beyond its cell, but faintly.
    near = 0 if isinstance(estimator, BlockMatching) else 0.25
    same = ((field - clean).abs().amax(1) <= near).float().mean()
    assert same > (0.9 if c < 32 else 0)
    frame.fill_(value)
    assert (field_of(estimator, current, previous) == 0).all()


def test_batches_are_singles(estimator):
    pairs = [moved_pair(99, 133, dx, dy) for dx, dy in ((4, 6), (0, 0), (-10, 3))]
    together = field_of(estimator, *(torch.cat(frames) for frames in zip(*pairs)))
    for field, pair in zip(together, pairs):
        assert torch.equal(field, field_of(estimator, *pair)[0])


def test_streams_without_a_frame_give_zeros_and_resets_leave_the_others(estimator):
    current, previous = moved_pair(99, 133, 4, 2, streams=3)
    now, before = estimator.features(current), estimator.features(previous)
    expected = estimator.estimate(now, before)
    none = MotionFeatures.empty((99, 133), streams=3)
    assert (estimator.estimate(now, none) == 0).all()
    copied = before.clone()
    for streams in (1, torch.tensor([False, True, False])):
        field = estimator.estimate(now, before.clone().reset(streams))
        assert (field[1] == 0).all() and torch.equal(field[[0, 2]], expected[[0, 2]])
    assert torch.equal(estimator.estimate(now, copied), expected)
    assert torch.equal(estimator.estimate(now, none.copy_(before)), expected)


def test_results_do_not_depend_on_what_memory_held(estimator):
    current, previous = moved_pair(99, 133, 4, 2)
    features = [estimator.features(x) for x in (current, previous)]
    expected = estimator.estimate(*features)
    reused = [MotionFeatures.empty((99, 133)) for _ in range(2)]
    for old, picture in zip(reused, (current, previous)):
        for level in old.levels:
            level.random_(0, 255)
        assert estimator.features(picture, out=old) is old
    out = torch.full_like(expected, float("nan"))
    workspace = [x.fill_(-77) for x in estimator.workspace(features[0])]
    assert estimator.estimate(*reused, out=out, workspace=workspace) is out
    assert torch.equal(out, expected)


def test_shapes_that_do_not_fit_are_refused(estimator):
    small, large = (estimator.features(texture(*size)) for size in ((40, 40), (80, 80)))
    with pytest.raises(ValueError, match="reset the stream"):
        estimator.estimate(large, small)
    with pytest.raises(ValueError, match="expected contiguous"):
        estimator.estimate(large, large, out=torch.zeros(1, 2, 1, 1))
    with pytest.raises(ValueError, match=r"expected \(N, C, H, W\)"):
        estimator.features(torch.zeros(3, 40, 40))
    with pytest.raises(ValueError, match="do not fit"):
        estimator.features(texture(40, 40), out=large)


def configured(**options):
    cfg = get_cfg()
    add_blockcopy_config(cfg)
    cfg.MODEL.BLOCKCOPY.MOTION.update(options)
    return cfg


def test_built_by_name(monkeypatch):
    assert build_motion(configured()) is None
    for name, kind in (
        ("BlockMatching", BlockMatching),
        ("DISFlow", DISFlow),
        ("CodecVectors", CodecVectors),
    ):
        built = build_motion(configured(NAME=name, CELL_SIZE=8))
        assert type(built) is kind and built.cell_size == 8
    cfg = configured(NAME="auto")
    cfg.MODEL.DEVICE = "cpu"
    assert type(build_motion(cfg)) is DISFlow
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cv2", None)
        assert type(build_motion(cfg)) is BlockMatching, "without OpenCV"
        codec = configured(NAME="CodecVectors")
        codec.MODEL.DEVICE = "cpu"
        assert type(build_motion(codec).fallback) is BlockMatching, "auto's"
        with pytest.raises(
            ImportError, match="DISFlow is OpenCV's .*: pip install opencv-python-h"
        ):
            DISFlow()
    cfg.MODEL.DEVICE = "cuda"
    assert type(build_motion(cfg)) is BlockMatching and build_motion(cfg).capturable
    with pytest.raises(KeyError, match="Farneback"):
        build_motion(configured(NAME="Farneback"))


def test_values_out_of_range_are_refused():
    check_blockcopy_config(configured())
    with pytest.raises(ValueError, match=r"MOTION.CELL_SIZE is 12; it must be one of 8, 16, 32"):
        check_blockcopy_config(configured(CELL_SIZE=12))
    with pytest.raises(ValueError, match="MOTION.DIS_PRESET"):
        check_blockcopy_config(configured(DIS_PRESET="slow"))
    for cell_size in (12, 8.0, "8", None):
        with pytest.raises(ValueError, match="cell_size is .*; it must be one of 8, 16, 32"):
            BlockMatching(cell_size=cell_size)
    with pytest.raises(ValueError, match="preset is 'slow'"):
        DISFlow(preset="slow")
