"""Copied features against those of a dense network that shifts with the picture."""

import torch
from torch.nn import functional as F

from benchmarks.copied_features import COPIES, distances
from blockcopy_d2.motion import BlockMatching


def test_whole_pixels_cost_nothing_away_from_the_border_and_staying_does():
    generator = torch.Generator().manual_seed(0)
    wide = F.avg_pool2d(255 * torch.rand(1, 3, 100, 300, generator=generator), 5, stride=1)[0]
    # 4 pixels a frame: a pixel of the map, and exactly half a cell.
    frames = [wide[:, :64, 100 - 4 * t : 228 - 4 * t].round().byte() for t in range(4)]

    def features(frame):
        return {"p2": F.avg_pool2d(frame[None].float(), 4)}

    found = distances(frames, features, BlockMatching(cell_size=8))
    assert list(found) == ["1", "3"]
    after = found["3"]["p2"]
    assert set(after) == set(COPIES)
    for kind in set(COPIES) - {"in place"}:
        # 3 of 32 columns have come in over the border.
        assert after[kind] < 0.5 * after["in place"], kind


def test_nothing_moves_in_a_still_picture():
    frame = torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8)
    found = distances(
        [frame, frame], lambda x: {"p2": x[None].float()[..., ::4, ::4]}, BlockMatching(cell_size=8)
    )
    assert set(found["1"]["p2"].values()) == {0.0}
