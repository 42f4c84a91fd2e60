"""A grid whose blocks are chosen and listed on the device, frame after frame."""

from .grid import BlockGrid
from .triton_ops.compact import compact


class DeviceGrid(BlockGrid):
    """The blocks of the current frame, in memory that stays in place: for CUDA graphs.

    Write the frame's blocks into `active`, then call compact(). Both belong in the graph:

        grid = DeviceGrid.full(block_size=128, image_size=(1024, 2048), device="cuda")
        with block_sparse(network, grid, state):  # allocates, compiles
            network(image)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            grid.active.copy_(choose_blocks(image))
            grid.compact()
            with block_sparse(network, grid, state):
                outputs = network(image)

    Reading the number of active blocks on the host (num_active, a SparseFrame's macs …) waits for
    the device and cannot be captured in a CUDA graph. Take a snapshot() for later instead.
    """

    def compact(self):
        """Updates the lists of active blocks from `active`."""
        self._levels.clear()
        self._selections.clear()
        for factor, blocks in self._lists.items():
            compact(self.active, factor, blocks)

    def snapshot(self):
        """Returns a BlockGrid of the blocks as they are now."""
        return BlockGrid(
            self.active.clone(), block_size=self.block_size, image_size=self.image_size
        )
