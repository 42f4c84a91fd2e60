"""The kernel that moves maps compiles without a GPU, and moves as defined in any precision."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from blockcopy_d2.kernels.device import Device  # noqa: E402
from blockcopy_d2.kernels.tf32 import round_tf32_reference  # noqa: E402
from blockcopy_d2.motion import move, triton_moving  # noqa: E402
from blockcopy_d2.motion.caches import MovedMap  # noqa: E402
from blockcopy_d2.motion.move_tables import TILING, Tiling, staging_bytes  # noqa: E402
from blockcopy_d2.motion.triton_moving import MoveLaunch  # noqa: E402
from tests.kernels.compiled import compiled_by  # noqa: E402
from tests.motion.moving import some_field  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALVES = (torch.float16, torch.bfloat16)


def test_compiles_for_hopper():
    kernels = compiled_by("tests.motion.compiling_moves", 90)
    # Collecting and moving, for each dtype. Lifted float32 is not a variant of its own.
    names = ["list_kernel", "move_kernel", "move_kernel"] * 4
    names += ["move_maps_kernel", "move_masks_kernel"]
    assert [kernel["name"] for kernel in kernels] == names
    for kernel in kernels:
        assert kernel["spills"] == 0
        assert kernel["wide_loads"] or kernel["name"] != "move_kernel"


@pytest.mark.parametrize("tiling", [TILING, Tiling(wide=(4, 8), narrow=(16, 16))])
@pytest.mark.parametrize(
    "dtype", [torch.float32, *(pytest.param(x, marks=pytest.mark.slow) for x in HALVES)]
)
def test_maps_of_many_shapes_move_in_one_call(dtype, tiling, monkeypatch):
    """Parts of wider rows, few channels, strides above and below the cells, two streams. Tiles are
    larger than maps or smaller, so that pixels come from others."""
    monkeypatch.setattr(triton_moving, "_TILING", tiling)
    size, cell_size, block_size = (48, 80), 8, 16
    field = some_field(size, cell_size, 2, DEVICE)
    active = torch.rand(2, 3, 5, device=DEVICE) < 0.3
    maps, expected = [], []
    for stride, channels, wider in [(1, 3, 4), (4, 32, 32), (8, 48, 64), (16, 5, 5), (32, 16, 16)]:
        height, width = (-(-n // stride) for n in size)
        rows = torch.randn(2 * height * width + 2, wider, device=DEVICE).to(dtype)[:, :channels]
        pixels = rows[:-2].view(2, height, width, channels).permute(0, 3, 1, 2)
        moved = move(pixels.float(), field, cell_size=cell_size, stride=stride).to(dtype)
        runs = active.repeat_interleave(block_size, 1).repeat_interleave(block_size, 2)
        runs = torch.nn.functional.max_pool2d(runs.float(), stride, ceil_mode=True) > 0
        expected.append(torch.where(runs[:, None], pixels, moved))
        maps.append(MovedMap(rows, (height, width), 2 * height * width, stride, False))
    staging = torch.full((staging_bytes(maps, tiling),), 0xFF, dtype=torch.uint8, device=DEVICE)
    launch = MoveLaunch(
        maps,
        staging,
        cell_size=cell_size,
        block_size=block_size,
        precision="ieee",
        device=Device(DEVICE),
    )
    beyond = [one.rows[-2:].clone() for one in maps]
    launch(field, active)
    for one, other, kept in zip(maps, expected, beyond, strict=True):
        found = one.rows[:-2].view(2, *one.size, -1).permute(0, 3, 1, 2)
        # Positions are float32: at 80 pixels, weights are exact to 4e-6.
        torch.testing.assert_close(found, other, rtol=2 * torch.finfo(dtype).eps, atol=3e-5)
        assert torch.equal(one.rows[-2:], kept)


@pytest.mark.parametrize("tiling", [TILING, Tiling(wide=(4, 8), narrow=(4, 4))])
@pytest.mark.parametrize("lifted", [False, True])
def test_values_kept_for_tf32_stay_values_for_tf32(lifted, tiling, monkeypatch):
    """Also those that enter small tiles, by way of the staging memory."""
    monkeypatch.setattr(triton_moving, "_TILING", tiling)
    field = torch.full((1, 2, 4, 4), 3.0, device=DEVICE)
    value = round_tf32_reference(torch.randn(64, 16, device=DEVICE))
    # Lifted: half of what tensor cores cut off is added to the bits.
    rows = (value.view(torch.int32) + 0x1000).view(torch.float32) if lifted else value.clone()
    one = MovedMap(rows, (8, 8), 64, 4, lifted)
    staging = torch.full((staging_bytes([one], tiling),), 0xFF, dtype=torch.uint8, device=DEVICE)
    MoveLaunch([one], staging, cell_size=8, block_size=16, precision="tf32", device=Device(DEVICE))(
        field, torch.zeros(1, 2, 2, dtype=torch.bool, device=DEVICE)
    )
    pixels = value.view(1, 8, 8, 16).permute(0, 3, 1, 2)
    expected = move(pixels, field, cell_size=8, stride=4).permute(0, 2, 3, 1).reshape(64, 16)
    found = (rows.view(torch.int32) - 0x1000).view(torch.float32) if lifted else rows
    if not lifted:
        assert torch.equal(found, round_tf32_reference(found))
    # One unit in the last of 10 bits, since values are rounded.
    torch.testing.assert_close(found, expected, rtol=1e-6 if lifted else 2**-10, atol=1e-6)
