"""Lowering: operators that share a launch, and values that share memory, which never meet."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from blockcopy_d2.sparse import BlockGrid, BlockSparseModule
from blockcopy_d2.sparse.fusion import Bottleneck, ConvolutionPair
from blockcopy_d2.sparse.lowering import lower
from blockcopy_d2.sparse.program import Convolution, Pool, Upsample
from tests.sparse.networks import build

SIZE = (64, 96)


def lowered(module, *tensors, widest_bottleneck=0, block_size=64):
    tensors = tensors or (torch.zeros(1, 3, *SIZE),)
    grid = BlockGrid.full(block_size=block_size, image_size=SIZE)
    program = BlockSparseModule(module.eval()).program(tensors, {}, grid)
    return program, lower(program, widest_bottleneck)


@pytest.fixture(scope="module")
def backbone():
    return build("R50-FPN").backbone


def test_buffers_alive_at_the_same_time_do_not_overlap(backbone):
    program, schedule = lowered(backbone)
    lives = {}
    for position, step in enumerate(schedule.steps):
        for index in {*step.reads, *step.writes}:
            first, _ = lives.get(schedule.places[index][0], (position, position))
            lives[schedule.places[index][0]] = (first, position)
    scratch = [root for root in lives if schedule.buffers[root].offset is not None]
    assert len(scratch) > 10
    together = 0
    for one, other in itertools.combinations(scratch, 2):
        if lives[one][0] <= lives[other][1] and lives[other][0] <= lives[one][1]:
            together += 1
            a, b = schedule.buffers[one], schedule.buffers[other]
            assert a.offset + a.nbytes <= b.offset or b.offset + b.nbytes <= a.offset
    assert together
    assert schedule.scratch_bytes < 0.5 * sum(schedule.buffers[root].nbytes for root in scratch)
    persistent = {root for root in schedule.buffers if schedule.buffers[root].persistent}
    needed = {schedule.places[i][0] for i in schedule.places if program.values[i].persistent}
    assert needed <= persistent


def test_every_value_is_written_before_it_is_read(backbone):
    for widest in (0, 128):
        program, schedule = lowered(backbone, widest_bottleneck=widest)
        written = set(program.inputs)
        for step in schedule.steps:
            assert set(step.reads) <= written
            written |= set(step.writes)
        assert {output.index for output in program.outputs if hasattr(output, "index")} <= written


def test_levels_of_a_head_share_a_launch():
    model = build("R50-FPN")
    features = [torch.zeros(1, 16, 64 // s, -(-96 // s)) for s in (4, 8, 16, 32, 64)]
    _, schedule = lowered(_Flat(model.proposal_generator.rpn_head), *features)
    assert [len(step.operators) for step in schedule.steps] == [5, 5]
    assert isinstance(schedule.steps[1].operators[0], ConvolutionPair)
    # At strides above the block size other blocks are active.
    _, schedule = lowered(_Flat(model.proposal_generator.rpn_head), *features, block_size=32)
    assert sorted(len(step.operators) for step in schedule.steps) == [1, 1, 4, 4]


class _Flat(nn.Module):
    """A head that takes its levels as separate arguments."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, *features):
        return self.head(list(features))


def test_shortcut_shares_a_launch_and_top_down_upsampling_needs_none(backbone):
    _, schedule = lowered(backbone)
    pairs = [step for step in schedule.steps if isinstance(step.operators[0], ConvolutionPair)]
    assert len(pairs) == 3  # res3, res4, res5: at this width, res2 needs no shortcut
    assert not any(isinstance(op, Upsample) for step in schedule.steps for op in step.operators)
    assert [scale for _, scale in schedule.residuals.values()].count(2) == 3


def test_residual_blocks_of_fitting_width_run_as_one(backbone):
    _, schedule = lowered(backbone, widest_bottleneck=128)
    blocks = [op for step in schedule.steps for op in step.operators if isinstance(op, Bottleneck)]
    assert blocks and all(len(block.middle.weight) <= 128 for block in blocks)
    assert any(block.following is not None for block in blocks)
    _, schedule = lowered(backbone, widest_bottleneck=32)
    assert not any(isinstance(op, Bottleneck) for step in schedule.steps for op in step.operators)


class _Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, 2, 1)
        self.middle = nn.Conv2d(64, 64, 3, 1, 1)
        self.last = nn.Conv2d(64, 64, 1)


def test_a_middle_that_others_read_is_written():
    class Net(_Chain):
        def forward(self, x):
            middle = F.relu(self.middle(F.relu(self.stem(x))))
            return self.last(middle), middle

    program, schedule = lowered(Net(), widest_bottleneck=128)
    assert [type(op) for step in schedule.steps for op in step.operators] == [Convolution] * 3


def test_dependent_convolutions_of_one_shape_keep_their_order():
    class Net(_Chain):
        def forward(self, x):
            x = self.middle(F.relu(self.stem(x)))
            return self.middle(F.relu(x)) + x

    program, schedule = lowered(Net())
    assert all(len(step.operators) == 1 for step in schedule.steps)


def test_parts_of_a_concatenation_are_written_in_place():
    class Net(_Chain):
        def forward(self, x):
            x = F.relu(self.stem(x))
            parts = torch.cat([self.middle(x), F.max_pool2d(x, 3, 1, 1), x], 1)
            return parts[:, 32:160]

    program, schedule = lowered(Net())
    whole = schedule.places[program.outputs[0].index][0]
    starts = {start for index, (root, start) in schedule.places.items() if root == whole}
    assert starts == {0, 32, 64, 128}
    assert len(schedule.buffers) == 2  # the image and the concatenation


def test_residuals_are_lifted_where_only_convolutions_see_them(backbone):
    program, schedule = lowered(backbone)
    residuals = {index for index, _ in schedule.residuals.values()}
    outputs = {output.index for output in program.outputs if hasattr(output, "index")}
    pooled = {op.output for step in schedule.steps for op in step.operators if isinstance(op, Pool)}
    # Shortcuts or inputs of 16 residual blocks, and three steps of the pyramid.
    assert len(residuals) == 19 and schedule.lifted == residuals - outputs - pooled
    for step in schedule.steps:
        assert len({operator.output in schedule.lifted for operator in step.operators}) == 1
    _, other = lowered(backbone, widest_bottleneck=64)
    assert other.lifted < schedule.lifted


def test_residuals_that_something_else_sees_are_not_lifted():
    class Block(nn.Module):
        def __init__(self, look):
            super().__init__()
            self.first, self.second = (nn.Conv2d(3, 3, 1) for _ in range(2))
            self.look = look

        def forward(self, x):
            x = self.first(x)
            return self.second(x) + x, self.look(x)

    for look, number in (
        (nn.Conv2d(3, 3, 1), 1),
        (nn.MaxPool2d(2), 0),
        (nn.Identity(), 0),
        (nn.GroupNorm(1, 3), 0),
    ):
        assert len(lowered(Block(look))[1].lifted) == number, look
