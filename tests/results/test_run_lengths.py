"""Run lengths are those of pycocotools, byte by byte."""

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_util

from blockcopy_d2.results.run_lengths import encode_labels, encode_masks


def expected(mask):
    found = mask_util.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    return {"size": found["size"], "counts": found["counts"].decode()}


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (12, 20), (33, 8)])
def test_masks(size):
    generator = torch.Generator().manual_seed(0)
    shares = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0]).view(-1, 1, 1)
    masks = torch.rand(5, *size, generator=generator) < shares
    corner = torch.zeros(2, *size, dtype=torch.bool)
    corner[0, -1, -1] = corner[1, 0, 0] = True
    masks = torch.cat([masks, corner, torch.rand(3, *size, generator=generator) < 0.3])
    assert encode_masks(masks) == [expected(mask) for mask in masks]
    # Masks may have any strides, as when they are turned or cut.
    assert encode_masks(masks[:, :, ::2].flip(1)) == [
        expected(mask) for mask in masks[:, :, ::2].flip(1)
    ]


def test_no_masks():
    assert encode_masks(torch.zeros(0, 12, 20, dtype=torch.bool)) == []


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_labels(dtype):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, 6, (9, 14), generator=generator, dtype=dtype)
    labels[2:7, 3:9] = 11
    found = encode_labels(labels)
    assert list(found) == [2, 3, 4, 5, 11]
    assert all(mask == expected(labels == label) for label, mask in found.items())
