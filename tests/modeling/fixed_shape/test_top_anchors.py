"""The choice of anchors against sorting them: on the GPU if there is one, else interpreted."""

import pytest
import torch

pytest.importorskip("triton")

from blockcopy_d2.modeling.fixed_shape.proposals import (  # noqa: E402
    align_levels,
    top_anchors_reference,
)
from blockcopy_d2.modeling.fixed_shape.triton_ops.top_anchors import top_anchors_triton  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def on_device():
    with torch.device(DEVICE):
        yield


def logits_of_levels(dtype, *, row=None):
    """Maps of 90, 30 and 6 anchors; with `row`, pixels lie that many channels apart."""
    maps = []
    for size in ((6, 5), (2, 5), (2, 1)):
        x = 2 * torch.randn(2, *size, row or 3)
        maps.append(x.to(dtype)[..., :3].permute(0, 3, 1, 2))
    return maps


@pytest.mark.parametrize(
    "dtype, k, row",
    [
        (torch.float16, 1, None),
        (torch.float16, 17, 15),
        (torch.float16, 90, 15),
        (torch.bfloat16, 17, None),
        (torch.float32, 17, 15),
        (torch.float32, 90, None),
    ],
)
def test_the_best_anchors_are_those_of_sorting(dtype, k, row, monkeypatch):
    """Programs see 32 anchors at a time, in memory that nothing was written to."""
    logits = logits_of_levels(dtype, row=row)
    # Many equal ones, and both zeros.
    logits[0][0, 1] = logits[0][0, 1].round()
    logits[1][0] = logits[1][0].sign() * 0.0
    logits[1][1, 0] = -torch.inf
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **options: empty(*args, **options).fill_(77))
    best, index = top_anchors_triton(logits, k, block=32)
    monkeypatch.undo()
    wanted, order = align_levels(logits).float().sort(dim=2, descending=True, stable=True)
    wanted, exists = wanted[..., :k], wanted[..., :k] > -torch.inf
    assert best.equal(wanted) and best.equal(top_anchors_reference(logits, k)[0])
    assert index[exists].equal(order[..., :k][exists])
    assert 0 <= index.min() and index.max() < 90


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_logits_that_are_not_finite(dtype):
    logits = [torch.randn(1, 3, 4, 5).to(dtype), torch.randn(1, 3, 2, 2).to(dtype)]
    logits[0][0, 0, 1, 2:] = torch.nan
    logits[0][0, 1, 0, 0] = torch.inf
    logits[0][0, 1, 3, 0] = -torch.nan
    best, _ = top_anchors_triton(logits, 12, block=32)
    flat = logits[0].permute(0, 2, 3, 1).flatten().float()
    # NaN is above all values, and each takes a place.
    nans = int(flat.isnan().sum())
    wanted = flat[~flat.isnan()].sort(descending=True).values[: 12 - nans]
    assert nans == 4 and best[0, 0, : 12 - nans].equal(wanted) and wanted[0] == torch.inf
    assert (best[0, 0, 12 - nans :] == -torch.inf).all() and torch.isfinite(best[0, 1]).all()
