"""Copying of many tensors in one launch: on the GPU if there is one, else interpreted."""

import pytest
import torch

pytest.importorskip("triton")

from blockcopy_d2.kernels import copying  # noqa: E402
from blockcopy_d2.kernels.copying import copy_all, copy_all_reference  # noqa: E402
from blockcopy_d2.kernels.packing import PackedCopies  # noqa: E402
from blockcopy_d2.kernels.triton_copying import copy_all_triton  # noqa: E402
from tests.kernels.compiled import compiled_by  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = {
    torch.float32: [(3, 3, 40, 60), (3, 1)],
    torch.bool: [(3, 5, 31), (3,), (3, 4, 8)],
    torch.int64: [(3,), (3, 0)],
    torch.float16: [(3, 7)],
    torch.int32: [(3, 4, 8)],
}


def tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(0, 2 if dtype == torch.bool else 100, shape, generator=generator)
        .to(dtype)
        .to(DEVICE)
        for dtype, shapes in SHAPES.items()
        for shape in shapes
    ]


@pytest.mark.parametrize("present", [None, (True, False, True), (False, False, False)])
def test_all_is_copied(present):
    present = None if present is None else torch.tensor(present, device=DEVICE)
    targets, sources, expected = tensors(0), tensors(1), tensors(0)
    copy_all_reference(expected, sources, present)
    copy_all_triton(targets, sources, present)
    for target, wanted, source in zip(targets, expected, sources, strict=True):
        assert torch.equal(target, wanted) and (present is not None or torch.equal(target, source))


def test_tensors_that_the_kernel_cannot_copy(monkeypatch):
    monkeypatch.setattr(copying, "triton_runs_on", lambda device: True)
    sources = [torch.rand(4, 6, device=DEVICE).t(), torch.rand(6, 4, device=DEVICE).half()]
    sources += [torch.rand(6, 4, device=DEVICE), torch.tensor(3.0, device=DEVICE)]
    targets = [torch.zeros(x.shape, device=DEVICE) for x in sources]
    copy_all(targets, sources)
    copy_all([], [])
    for target, source in zip(targets, sources, strict=True):
        assert torch.equal(target, source.float())
    kept = [x.clone() for x in targets]
    copy_all(targets, targets)
    assert all(map(torch.equal, targets, kept))


def test_copies_in_one_piece_of_memory():
    packed, first, second = PackedCopies(tensors(0)), tensors(1), tensors(2)
    packed.fill(first)
    kept = packed.take()
    packed.fill(second)
    for copies, originals in ((kept, first), (packed.take(), second)):
        for copy, original in zip(copies, originals, strict=True):
            assert copy.dtype == original.dtype and torch.equal(copy, original)
            assert copy.data_ptr() % 16 == 0


def test_compiles_without_a_gpu():
    kernels = compiled_by("tests.kernels.compiling_copies", 90)
    assert [kernel["name"] for kernel in kernels] == ["copy_all_kernel"] * 2
    assert all(kernel["wide_loads"] and not kernel["spills"] for kernel in kernels)
