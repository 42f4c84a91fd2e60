"""Fields, and the masked-dense oracle of maps that move."""

import torch

from blockcopy_d2.motion import CacheMover, field_size, move, moved_values
from blockcopy_d2.sparse import BlockSparseModule, MaskedDenseOracle
from blockcopy_d2.sparse.program import GlobalMean, GroupNorm


def some_field(image_size, cell_size, batch=1, device="cpu"):
    """Half of the cells move, by up to 20 pixels, a few of them far beyond the border."""
    size = field_size(image_size, cell_size)
    field = 8 * torch.randn(batch, 2, *size)
    field[(torch.rand(batch, 1, *size) < 0.1).expand_as(field)] = 1000.0
    moves = torch.rand(batch, 1, *size) < 0.5
    return torch.where(moves, field, 0).to(device)


class MovingOracle:
    """:class:`MaskedDenseOracle` that moves what a :class:`CacheMover` moves."""

    def __init__(self, module, image, grid, **options):
        """
        Args:
            module (nn.Module): module of the oracle.
            image (Tensor): float (N, 3, H, W), an example.
            grid (BlockGrid): grid of any frame.
            options: options of CacheMover.
        """
        program = BlockSparseModule(module).program((image,), {}, grid)
        moved = {name: value for name, value in options.items() if name != "cell_size"}
        self.moved = moved_values(program, **moved)
        self.cell_size, self.image_size = options["cell_size"], grid.image_size
        statistics = (GroupNorm, GlobalMean)
        self.oracle = MaskedDenseOracle(
            module,
            (image,),
            unmasked=program.densified,
            moved=self.moved,
            in_place=[op.name for op in program.operators if isinstance(op, statistics)],
        )

    def __call__(self, image, grid, field):
        def moved(x):
            return move(x, field, cell_size=self.cell_size, stride=self.stride_of(x))

        return self.oracle((image,), grid, move=moved)

    def stride_of(self, x):
        for stride in (2**power for power in range(8)):
            if tuple(-(-n // stride) for n in self.image_size) == tuple(x.shape[-2:]):
                return stride
        raise AssertionError(f"no map of the frame: {tuple(x.shape)}")


__all__ = ["CacheMover", "MovingOracle", "some_field"]
