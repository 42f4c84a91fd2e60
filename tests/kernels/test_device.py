"""The GPU of some tensors as the current one."""

import contextlib

import torch

from blockcopy_d2.kernels.device import on_device


def test_a_gpu_becomes_the_current_one():
    other = on_device(torch.device("cuda:1"))
    assert isinstance(other, torch.cuda.device) and other.idx == 1


def test_elsewhere_nothing_changes():
    assert isinstance(on_device(torch.device("cpu")), contextlib.nullcontext)
