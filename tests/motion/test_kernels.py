"""Block matching as Triton kernels: on the GPU if there is one, else interpreted."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from blockcopy_d2.motion import BlockMatching, MotionFeatures, matching, triton_cells, triton_search  # noqa: E402
from blockcopy_d2.motion.pyramid import luma_pyramid, pyramid_reference  # noqa: E402
from blockcopy_d2.motion.triton_field import field_launch  # noqa: E402
from blockcopy_d2.motion.triton_pyramid import pyramid_launch  # noqa: E402
from blockcopy_d2.motion.triton_search import search_launch  # noqa: E402
from tests.kernels.compiled import compiled_by  # noqa: E402
from tests.motion.pictures import moved_pair, texture  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAN = float("nan")


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch):
    """The interpreter takes the same time for each program, however many cells it has."""
    if DEVICE == "cpu":
        monkeypatch.setattr(triton_cells, "PIXELS", 2**15)
        monkeypatch.setattr(triton_search, "WARPS", 2**4)


def by_kernel(images, sizes=None):
    """Features whose memory held something else before."""
    features = MotionFeatures.empty(images.shape[-2:], streams=len(images), device=DEVICE)
    for level in features.levels:
        level.random_(0, 255)
    sizes = None if sizes is None else sizes.to(DEVICE)
    pyramid_launch(images.to(DEVICE), sizes, features.levels)
    return features


def by_reference(images, sizes=None):
    features = MotionFeatures.empty(images.shape[-2:], streams=len(images))
    pyramid_reference(images, sizes, features.levels)
    return features


def assert_same_levels(images, sizes=None):
    found, expected = by_kernel(images, sizes), by_reference(images, sizes)
    for one, other in zip(found.levels, expected.levels):
        assert torch.equal(one.cpu(), other)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (31, 33), (64, 64), (70, 101), (129, 66)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_pyramid(size, dtype):
    assert_same_levels(texture(*size, streams=2).to(dtype))


def test_pyramid_of_other_strides():
    """Pictures in numpy's layout, and cropped ones."""
    images = texture(70, 90, streams=2).to(torch.uint8).to(memory_format=torch.channels_last)
    assert_same_levels(images)
    assert_same_levels(images[:, :, 3:60, 5:82])


def test_pyramid_of_padded_canvases():
    images = texture(70, 101, streams=3)
    sizes = torch.tensor([[70, 101], [33, 64], [1, 7]], dtype=torch.int32)
    for image, (height, width) in zip(images, sizes):
        image[:, height:] = NAN
        image[:, :, width:] = 1e30
    assert_same_levels(images, sizes)


def test_pyramid_marks_what_is_not_finite():
    images = texture(70, 101)
    images[0, 0, 5, 9], images[0, 1, 40, 60], images[0, 2, 69, 100] = NAN, float("inf"), NAN
    images[0, :, 0, 0] = 3e38  # whose sum is not finite
    images[0, :, 20:24, 20:24] = -1e6
    images[0, :, 30:34, 20:24] = 1e6
    assert_same_levels(images)


MOTIONS = {8: (6, -10), 16: (-1.5, 2.75), 32: (0, 0)}


@pytest.mark.parametrize(
    "cell_size, motion",
    [
        # Interpreted kernels are slow: every cell size and every motion once.
        pytest.param(size, motion, marks=[] if MOTIONS[size] == motion else pytest.mark.slow)
        for size in MOTIONS
        for motion in MOTIONS.values()
    ],
)
def test_field(cell_size, motion):
    """Vectors of all levels, and the field, are the reference's to the bit."""
    current, previous = moved_pair(85, 102, *motion, streams=2)
    current[1, 0, 50, 70] = NAN
    previous[0, :, 30:60, 30:60] = texture(30, 30)[0]
    sizes = torch.tensor([[85, 102], [61, 70]], dtype=torch.int32)
    compare(current, previous, cell_size, sizes)


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (17, 15)])
def test_field_of_tiny_pictures(size):
    compare(texture(*size), texture(*size), 16)


@pytest.mark.parametrize("cell_size", [8, pytest.param(16, marks=pytest.mark.slow)])
def test_field_of_noise(cell_size, monkeypatch):
    """Frames that have nothing in common, so that ties and far vectors are frequent. A thread
    compares one row of a small cell, or several."""
    if cell_size == 8:
        monkeypatch.setattr(triton_search, "LEAST_WARPS", 0)
    compare(256 * torch.rand(1, 3, 65, 58), 256 * torch.rand(1, 3, 65, 58), cell_size)
    # The second is brighter by more than what comes from beyond the image costs.
    flat, brighter = torch.full((2, 3, 65, 58), 100.0), torch.tensor([3, 40]).view(2, 1, 1, 1)
    compare(flat + brighter * torch.rand(2, 3, 65, 58), flat, cell_size)


def compare(current, previous, cell_size, sizes=None):
    cell = cell_size // 2
    now, before = by_reference(current, sizes), by_reference(previous, sizes)
    there = [[level.to(DEVICE) for level in features.levels] for features in (now, before)]
    estimator = BlockMatching(cell_size=cell_size)
    *workspace, costs = (x.to(DEVICE).fill_(12345) for x in estimator.workspace(now))
    expected = estimator.estimate(now, before)
    out = torch.full(expected.shape, NAN, device=DEVICE)
    search_launch(*there, cell, workspace)
    field_launch(*(levels[0] for levels in there), cell, workspace[0], costs, out)
    vectors = None
    for level in reversed(range(len(workspace))):
        radius = matching.RADIUS if level + 1 < len(workspace) else matching.COARSEST_RADIUS
        vectors = matching.search(
            now.levels[level], before.levels[level], vectors, cell, radius, finest=level == 0
        )
        assert torch.equal(workspace[level].cpu(), vectors), f"level {level}"
    assert torch.equal(out.cpu(), expected)


@pytest.mark.parametrize(
    "capability, cells",
    [
        (90, [8]),
        pytest.param(90, [16, 32], marks=pytest.mark.slow),
        pytest.param(80, [8, 16, 32], marks=pytest.mark.slow),
    ],
)
def test_compiles_without_a_gpu(capability, cells):
    """For Hopper and Ampere; a frame is three launches and one for each level."""
    found = compiled_by("tests.motion.compiling", capability, *cells)
    names = {"pyramid_kernel", "search_kernel", "field_kernel", "still_kernel"}
    assert {kernel["name"] for kernel in found} == names
    assert all(kernel["shared_memory"] <= 48 << 10 for kernel in found)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_recorded_as_a_graph():
    """Replays with new pixels in the same memory have the results of eager frames."""
    estimator = BlockMatching(cell_size=16)
    frames = [texture(256, 320).to(DEVICE), *(x.to(DEVICE) for x in moved_pair(256, 320, 6, -4))]
    image = frames[0].clone()
    now = MotionFeatures.empty((256, 320), device=DEVICE)
    before, out = now.clone(), torch.empty(1, 2, 16, 20, device=DEVICE)
    workspace = estimator.workspace(now)

    def frame():
        before.copy_(now)
        estimator.features(image, out=now)
        estimator.estimate(now, before, out=out, workspace=workspace)

    frame()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        frame()
    for current, previous in zip(frames, frames[-1:] + frames[:-1]):
        image.copy_(previous)
        graph.replay()
        image.copy_(current)
        graph.replay()
        expected = estimator.estimate(luma_pyramid(current), luma_pyramid(previous))
        assert torch.equal(out, expected)
