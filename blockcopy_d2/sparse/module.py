"""BlockSparseModule: an nn.Module that executes only the active blocks of a video stream."""

import contextlib
import logging
import os

import torch
import torch.utils._pytree as pytree

from blockcopy_d2.kernels import has_triton, triton_runs_on

from . import torch_ops
from .capture import CaptureError, capture
from .planning import plan
from .precision import autocast_dtype, example_inputs
from .proxy import ModuleProxy

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "triton", "torch")
# Programs kept per module, one for each input size, block size and precision.
_MAX_PROGRAMS = 8


class BlockSparseModule(ModuleProxy):
    """Runs a dense network block-sparsely on video, with the same call signature and weights.

    Inside block_sparse() a call computes the active blocks of the frame and leaves the features of
    all others as the stream's state holds them. Anywhere else, and in training mode, the module
    behaves as the one it holds: dense and stateless.

    The network is captured when it first sees an input size. A network that torch.export cannot
    capture runs densely, and says so once.

    It computes in the precision of its weights; under torch.autocast in autocast's, all of it, with
    weights rounded once and for all frames. Feature caches and outputs are of that precision.
    """

    def __init__(self, module, backend="auto"):
        """
        Args:
            module: the network. This module has all that it has, under the same names, see
                ModuleProxy: the state_dict is that of the network. Methods besides forward run
                densely.
            backend: "triton", "torch" or "auto", see execution().

        Raises:
            ValueError: if there is no such backend.
        """
        super().__init__()
        if backend not in BACKENDS:
            raise ValueError(f"Backend {backend!r}: must be one of {', '.join(BACKENDS)}.")
        self.backend = backend
        self._programs = {}
        self._frame = None
        self._uncapturable = False
        self.register_load_state_dict_post_hook(_forget_programs)
        self._wrap(module)

    @property
    def dense_module(self):
        """nn.Module: the network."""
        return self._wrapped

    def __getstate__(self):
        # A copy compiles its own.
        return {**self.__dict__, "_programs": {}, "_frame": None}

    def _wrapped_changed(self):
        self._programs.clear()

    def train(self, mode=True):
        self.dense_module.train(mode)
        return super().train(mode)

    def _apply(self, fn, recurse=True):
        self._programs.clear()
        return super()._apply(fn, recurse)

    def extra_repr(self):
        return f"block-sparse {type(self.dense_module).__name__}"

    def forward(self, *args, **kwargs):
        if self._frame is None or self.training or self._uncapturable:
            return self.dense_module(*args, **kwargs)
        frame = self._frame
        try:
            program = self.program(args, kwargs, frame.grid)
        except CaptureError as error:
            logger.warning("%s runs densely: %s", type(self.dense_module).__name__, error)
            self._uncapturable = True
            return self.dense_module(*args, **kwargs)
        tensors = _tensors(args, kwargs)
        try:
            with torch.no_grad(), torch.autocast(tensors[0].device.type, enabled=False):
                run = execution(self.backend, tensors[0])
                outputs = run(program, frame.state, frame.grid).run(tensors)
        except BaseException:
            # Half of the caches are of this frame and half of the last: no basis for the next.
            frame.state.reset()
            raise
        frame.programs.append(program)
        return pytree.tree_unflatten(outputs, program.output_spec)

    def program(self, args, kwargs, grid):
        """The Program for inputs of these shapes, compiled on first use.

        Raises:
            CaptureError: if the network cannot be captured.
            ValueError: if the block size does not align with the network's strides.
        """
        leaves = pytree.tree_leaves((args, kwargs))
        shapes = tuple(
            (tuple(leaf.shape), leaf.dtype, leaf.device) if isinstance(leaf, torch.Tensor) else leaf
            for leaf in leaves
        )
        device = _tensors(args, kwargs)[0].device
        dtype = autocast_dtype(device)
        key = (shapes, grid.block_size, grid.image_size, dtype)
        if key not in self._programs:
            if dtype is not None:
                args, kwargs = example_inputs(self.dense_module, args, kwargs)
            with torch.autocast(device.type, enabled=False):
                captured = capture(self.dense_module, args, kwargs)
            program = plan(
                captured,
                block_size=grid.block_size,
                image_size=grid.image_size,
                dtype=dtype,
                module_name=type(self.dense_module).__name__,
            )
            while len(self._programs) >= _MAX_PROGRAMS:
                self._programs.pop(next(iter(self._programs)))
            self._programs[key] = program
        return self._programs[key]


def _tensors(args, kwargs):
    return [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]


def execution(backend, tensor):
    """The class that executes a program on tensors like this one.

    Args:
        backend: "triton" for Triton's kernels, "torch" for PyTorch's own operators, "auto" for
            Triton's on NVIDIA GPUs from compute capability 8.0 on and PyTorch's elsewhere.
        tensor: an input of the program.

    Raises:
        RuntimeError: if Triton is asked for and cannot be imported, or the tensor is not on an
            NVIDIA GPU, unless Triton interprets its kernels (TRITON_INTERPRET=1), which is for
            tests.
    """
    if backend == "auto":
        backend = "triton" if triton_runs_on(tensor.device) else "torch"
    if backend == "torch":
        return torch_ops.Execution
    if not tensor.is_cuda and os.environ.get("TRITON_INTERPRET", "0") in ("", "0"):
        raise RuntimeError(
            f"Backend 'triton' runs on NVIDIA GPUs, and the input is on {tensor.device}: move the "
            "model there, or set MODEL.BLOCKCOPY.BACKEND to 'auto' or 'torch'."
        )
    if not has_triton():
        raise RuntimeError(
            "Backend 'triton' needs the package triton, which cannot be imported: install it, or "
            "set MODEL.BLOCKCOPY.BACKEND to 'auto' or 'torch'."
        )
    from .triton_execution import TritonExecution

    return TritonExecution


def _forget_programs(module, incompatible_keys):
    """Programs hold folded copies of the weights."""
    module._programs.clear()


class SparseFrame:
    """One frame of one stream: the grid, the state, and what the execution cost.

    Attributes:
        programs: Programs that ran, in order.
    """

    def __init__(self, grid, state):
        self.grid = grid
        self.state = state
        self.programs = []

    @property
    def macs(self):
        """Multiply-accumulates that the block-sparse modules executed. Waits for the grid."""
        return sum(program.macs(self.grid)[0] for program in self.programs)

    @property
    def dense_macs(self):
        """What they would have executed with all blocks active."""
        return sum(program.dense_macs for program in self.programs)


@contextlib.contextmanager
def block_sparse(model, grid, state):
    """Binds every BlockSparseModule of `model` to one frame of one stream.

    Args:
        model: nn.Module.
        grid: BlockGrid of the frame.
        state: StreamState of the stream.

    Yields:
        SparseFrame
    """
    frame = SparseFrame(grid, state)
    modules = [module for module in model.modules() if isinstance(module, BlockSparseModule)]
    for module in modules:
        module._frame = frame
    try:
        yield frame
    finally:
        for module in modules:
            module._frame = None
