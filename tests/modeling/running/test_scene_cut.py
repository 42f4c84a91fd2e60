import pytest
import torch

from blockcopy_d2.modeling import scene_cuts


def scene(seed, number=1):
    """Smooth colours, normalized by a standard deviation of 50; consecutive frames of a pan."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 255 * torch.rand(1, 3, 12, 16, generator=generator)
    wide = torch.nn.functional.interpolate(coarse, scale_factor=12, mode="bilinear")
    return [(wide[..., :96, 2 * i : 2 * i + 128] - 127) / 50 for i in range(number)]


def cut(frame, previous, **settings):
    settings = {"share": 0.33, "pixels_per_block": 32, "coverage": 1.0, **settings}
    return scene_cuts(frame, previous, pixel_std=torch.full((3, 1, 1), 50.0), **settings)


def test_another_scene_is_a_cut_and_a_moving_camera_is_none():
    (other,) = scene(1)
    frames = scene(0, 5)
    for previous, frame in zip(frames, frames[1:]):
        assert not cut(frame, previous)
        assert cut(other, frame) and cut(frame, other)
    assert not cut(frames[0], frames[0])


def test_a_large_object_is_no_cut():
    (frame,) = scene(0)
    moved = frame.clone()
    moved[..., 16:80, 16:64] = 2.5
    assert not cut(moved, frame)
    moved[..., :, :64] = 2.5
    assert cut(moved, frame)


def test_padding_does_not_hide_a_cut():
    frames = [torch.zeros(1, 3, 128, 128) for _ in range(2)]
    for frame, seed in zip(frames, (0, 1)):
        frame[..., :64, :64] = scene(seed)[0][..., :64, :64]
    assert not cut(*frames)
    assert cut(*frames, coverage=0.25)


def test_streams_are_told_apart_and_broken_frames_are_no_cut():
    first, second = scene(0)[0], scene(1)[0]
    broken = second.clone()
    broken[0, 0] = torch.nan
    frame, previous = torch.cat([second, first, broken]), torch.cat([first] * 3)
    assert cut(frame, previous).tolist() == [True, False, False]


@pytest.mark.parametrize("pixels_per_block", [32, 16, 8])
def test_cells_follow_the_policy_resolution(pixels_per_block):
    size = 3 * pixels_per_block
    first, second = (
        torch.nn.functional.interpolate(scene(seed)[0], size=(size, size)) for seed in (0, 1)
    )
    assert cut(second, first, pixels_per_block=pixels_per_block)
    assert not cut(first, first, pixels_per_block=pixels_per_block)
