"""BlockSparseModule: an nn.Module that executes only the active blocks of a video stream."""

import contextlib
import contextvars
import logging
import os
import types

import torch
import torch.utils._pytree as pytree

from blockcopy_d2.kernels import has_triton, triton_runs_on
from blockcopy_d2.kernels.device import on_device

from . import torch_ops
from .grid import BlockGrid
from .macs import MacCount
from .planning import plan
from .precision import autocast_dtype, example_inputs
from .program_cache import ProgramCache
from .proxy import ModuleProxy
from .tracing import TRACING, TraceError, trace
from .weights import WeightsWatch

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "triton", "torch")
# Failed traces after which a network counts as one that cannot be traced. A failure may be
# temporary, such as one caused by another thread that traces or compiles.
_MAX_FAILURES = 3
# BlockSparseModule -> SparseFrame of the current thread or task. The state of a call does not
# belong to the module: another thread may call it with a picture of its own.
_frames = contextvars.ContextVar("blockcopy_d2_frames", default=types.MappingProxyType({}))
_counts_itself = contextvars.ContextVar("blockcopy_d2_counts_itself", default=False)


class BlockSparseModule(ModuleProxy):
    """Runs a dense network block-sparsely on video, with the same call signature and weights.

    Inside block_sparse() a call computes the active blocks of the frame and leaves the features of
    all others as the stream's state holds them. Anywhere else, and in training mode, the module
    behaves like the one it holds: dense and stateless.

    The network is traced when it first sees an input size. A network that torch.export cannot
    trace runs densely, and says so once. When its weights change in any way, its programs are
    compiled anew and streams must run all blocks again, see WeightsWatch.

    Threads may call one module at the same time. Frames of one module take turns, though: Triton's
    kernels share scratch memory.

    It computes in the precision of its weights; under torch.autocast, all of it in autocast's, with
    weights rounded once for all frames. Feature caches and outputs have that precision.
    """

    def __init__(self, module, backend="auto"):
        """
        Args:
            module: the network. This module has all of its attributes under the same names, see
                ModuleProxy, so the state_dict is that of the network. Methods other than forward
                run densely.
            backend: "triton", "torch" or "auto", see execution().

        Raises:
            ValueError: if there is no such backend.
        """
        super().__init__()
        if backend not in BACKENDS:
            raise ValueError(f"Backend {backend!r}: must be one of {', '.join(BACKENDS)}.")
        self.backend = backend
        self._programs = ProgramCache()
        self._weights = WeightsWatch(module)
        self._failures = 0
        self._dense_macs = {}
        self._untraceable = False
        self._wrap(module)

    @property
    def dense_module(self):
        """nn.Module: the network."""
        return self._wrapped

    def _wrapped_changed(self):
        self._weights.forget()

    def train(self, mode=True):
        self.dense_module.train(mode)
        return super().train(mode)

    def extra_repr(self):
        return f"block-sparse {type(self.dense_module).__name__}"

    def forward(self, *args, **kwargs):
        frame = _frames.get().get(self)
        if frame is None or self.training:
            return self.dense_module(*args, **kwargs)
        with frame.timed():
            try:
                # Caches outlive the caller's inference mode, and are written to outside of it.
                with torch.inference_mode(False), torch.no_grad():
                    return self._run(frame, args, kwargs)
            except BaseException:
                # Half of the caches belong to this frame and half to the last: no basis for the
                # next.
                frame.state.reset()
                raise

    def _run(self, frame, args, kwargs):
        program = None
        if not self._untraceable:
            try:
                program = self.program(args, kwargs, frame.grid)
            except TraceError as error:
                self._note_failure(frame, error)
        if program is None:
            return self._run_densely(frame, args, kwargs)
        tensors = _tensors(args, kwargs)
        device = tensors[0].device
        with on_device(device), torch.autocast(device.type, enabled=False):
            run = execution(self.backend, tensors[0])
            outputs = run(program, frame.state, frame.grid).run(tensors)
        frame.programs.append(program)
        return pytree.tree_unflatten(outputs, program.output_spec)

    def program(self, args, kwargs, grid):
        """The Program for inputs of these shapes, compiled on first use.

        Raises:
            TraceError: if the network cannot be traced.
            ValueError: if the block size does not align with the network's strides.
        """
        device = _tensors(args, kwargs)[0].device
        dtype = autocast_dtype(device)
        key = (_shapes(args, kwargs), grid.block_size, grid.image_size, dtype)
        program = self._programs.get(key)
        if program is None:
            with TRACING:
                program = self._programs.get(key)
                if program is None:
                    program = self._compile(args, kwargs, grid, dtype)
                    self._programs.add(key, program)
        return program

    def _compile(self, args, kwargs, grid, dtype):
        if dtype is not None:
            args, kwargs = example_inputs(self.dense_module, args, kwargs)
        with torch.autocast(_tensors(args, kwargs)[0].device.type, enabled=False):
            traced = trace(self.dense_module, args, kwargs)
        return plan(
            traced,
            block_size=grid.block_size,
            image_size=grid.image_size,
            dtype=dtype,
            module_name=type(self.dense_module).__name__,
        )

    def _note_failure(self, frame, error):
        if not self._failures:
            name = type(self.dense_module).__name__
            logger.warning("%s runs densely: %s", name, error)
        self._failures += 1
        self._untraceable = self._failures >= _MAX_FAILURES
        frame.may_improve |= not self._untraceable

    def _run_densely(self, frame, args, kwargs):
        shapes = _shapes(args, kwargs)
        counts = _counts_itself.set(True)
        try:
            if shapes in self._dense_macs:
                outputs = self.dense_module(*args, **kwargs)
            else:
                with MacCount() as count:
                    outputs = self.dense_module(*args, **kwargs)
                self._dense_macs[shapes] = count.macs
        finally:
            _counts_itself.reset(counts)
        frame.dense_module_macs.append(self._dense_macs[shapes])
        return outputs

    def weights_version(self):
        """
        Number of times that the weights have changed. Programs of earlier weights are dropped.
        """
        # One thread at a time, so that none drops what another has compiled for the same weights.
        with self._weights.lock:
            if self._weights.changed():
                self._programs.clear()
            return self._weights.version


def counts_itself():
    """Returns whether a SparseFrame counts the modules that are running."""
    return _counts_itself.get()


def _tensors(args, kwargs):
    return [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]


def _shapes(args, kwargs):
    """Returns the part of the arguments that a program depends on; hashable."""
    return tuple(
        (tuple(leaf.shape), leaf.dtype, leaf.device) if isinstance(leaf, torch.Tensor) else leaf
        for leaf in pytree.tree_leaves((args, kwargs))
    )


def execution(backend, tensor):
    """Returns the class that executes a program on tensors like this one.

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


class SparseFrame:
    """One frame of one stream: the grid, the state, and the cost of the execution.

    Attributes:
        grid: BlockGrid that was asked for.
        programs: Programs that ran, in order.
        dense_module_macs: multiply-accumulates of every module that ran densely instead.
        may_improve: whether a module ran densely but will be traced again.
        timed: returns a context manager that is open while a module runs.
    """

    def __init__(self, grid, state, timed=contextlib.nullcontext):
        self.grid = grid
        self.state = state
        self.timed = timed
        self.programs = []
        self.dense_module_macs = []
        self.may_improve = False

    @property
    def executed(self):
        """BlockGrid of the blocks that were executed: all where a module ran densely."""
        return self._full_grid() if self.dense_module_macs else self.grid

    @property
    def refreshed(self):
        """BlockGrid of the blocks that no module holds older features of."""
        return self.grid if self.programs else self.executed

    def _full_grid(self):
        return BlockGrid(
            torch.ones_like(self.grid.active),
            block_size=self.grid.block_size,
            image_size=self.grid.image_size,
        )

    @property
    def macs(self):
        """Multiply-accumulates that the block-sparse modules executed. Waits for the grid."""
        sparse = sum(program.macs(self.grid)[0] for program in self.programs)
        return sparse + sum(self.dense_module_macs)

    @property
    def dense_macs(self):
        """Multiply-accumulates that all blocks would take."""
        dense = sum(program.dense_macs for program in self.programs)
        return dense + sum(self.dense_module_macs)


@contextlib.contextmanager
def block_sparse(model, grid, state, *, timed=contextlib.nullcontext):
    """Binds every BlockSparseModule of `model` to one frame of one stream.

    The binding is that of the calling thread (or task of asyncio): calls from others are dense. If
    weights have changed since the state's last frame, or an exception leaves the context, nothing
    is kept: the state's next frame must run all blocks.

    Args:
        model: nn.Module.
        grid: BlockGrid of the frame.
        state: StreamState of the stream.
        timed: called for every module; returns a context manager that is open while it runs.

    Yields:
        SparseFrame
    """
    frame = SparseFrame(grid, state, timed)
    modules = [module for module in model.modules() if isinstance(module, BlockSparseModule)]
    state.expect({module: module.weights_version() for module in modules})
    bound = _frames.set({**_frames.get(), **dict.fromkeys(modules, frame)})
    try:
        yield frame
    except BaseException:
        state.reset()
        raise
    finally:
        _frames.reset(bound)
