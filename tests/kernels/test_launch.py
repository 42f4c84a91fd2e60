"""Launches: bound arguments, arguments of a call, and signatures for a process that compiles."""

import pickle

import pytest
import torch

from blockcopy_d2.kernels.launch import Launch, compile_launch


class Kernel:
    """Remembers how it was launched."""

    def __init__(self, *names):
        self.arg_names, self.launches = names, []

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self.launches.append((grid, args, kwargs))

    def warmup(self, *args, grid, **kwargs):
        self.launches.append((grid, args, kwargs))


def test_a_call_gives_the_first_arguments():
    kernel = Kernel("x", "sizes", "BLOCK")
    launch = Launch(kernel, (3, 2), ((4, 5),), {"BLOCK": 64})
    launch("x")
    assert kernel.launches == [((3, 2), ("x", (4, 5)), {"BLOCK": 64})]


def test_a_signature_has_dtypes_for_tensors_and_travels():
    launch = Launch(
        Kernel(), (1,), ((torch.zeros(2), 7), torch.zeros(1).half(), 0.5), {"C": (1, 2)}
    )
    arguments, constants = pickle.loads(pickle.dumps(launch.signature(torch.zeros(3).int())))
    assert arguments == [torch.int32, (torch.float32, 7), torch.float16, 0.5]
    assert constants == {"C": (1, 2)}


def test_a_signature_is_compiled_with_stand_ins():
    pytest.importorskip("triton")
    kernel = Kernel()
    compile_launch(kernel, [(torch.float32, 7), torch.int32], {"C": 1})
    ((grid, ((first, number), second), constants),) = kernel.launches
    assert (first.dtype, number, second.dtype) == (torch.float32, 7, torch.int32)
    assert grid == (1,) and constants == {"C": 1}


@pytest.mark.parametrize("settled", [True, False])
def test_kernels_that_may_read_ahead_are_told(settled):
    pytest.importorskip("triton")
    from blockcopy_d2.sparse.triton_ops.block_launch import BlockLaunch
    from blockcopy_d2.sparse.triton_ops.geometry import BlockList

    blocks = BlockList(torch.zeros(4).int(), torch.zeros(1).int(), settled=settled)
    ahead, waiting = Kernel("blocks_ptr", "SETTLED"), Kernel("blocks_ptr")
    for kernel, told in ((ahead, {"SETTLED": settled}), (waiting, {})):
        BlockLaunch(kernel, (1,), (5,), {"BM": 64})(blocks)
        ((_, arguments, constants),) = kernel.launches
        assert arguments[0] is blocks.blocks and arguments[1] is blocks.count
        assert arguments[2:] == (5,) and constants == {"BM": 64, **told}
