"""Launches bound to their operands. Only making them needs Triton."""

import dataclasses

import torch

__all__ = ["Launch", "compile_launch"]


class Launch:
    """
    A kernel with everything that its launches share. Calling it launches the kernel.

    Attributes:
        kernel (JITFunction): launched.
        grid (tuple[int, ...]): number of programs along each axis.
        arguments (tuple): arguments of the kernel, after those of the call. Tuples group related
            arguments.
        constants (dict): its constants, and Triton's options.
    """

    def __init__(self, kernel, grid, arguments, constants):
        self.kernel, self.grid = kernel, grid
        self.arguments, self.constants = arguments, constants
        self._launch = kernel[grid]

    def __call__(self, *first):
        """
        Args:
            *first: the first arguments of the kernel, which may differ between calls.
        """
        self._launch(*first, *self.arguments, **self.constants)

    def signature(self, *first):
        """
        Returns:
            tuple[list, dict]: positional and keyword arguments with dtypes for tensors, for
            :func:`compile_launch` in this or another process.
        """
        return [_type_of(x) for x in (*first, *self.arguments)], self.constants


def compile_launch(kernel, arguments, constants):
    """
    Compiles the kernel of a launch into Triton's cache.

    Args:
        kernel (JITFunction):
        arguments, constants: of :meth:`Launch.signature`.
    """
    kernel.warmup(*map(_stand_in, arguments), grid=(1,), **constants)


def _type_of(argument):
    if isinstance(argument, tuple):
        return tuple(map(_type_of, argument))
    if hasattr(argument, "block_shape"):  # a TensorDescriptor
        return dataclasses.replace(argument, base=_stand_in(argument.base.dtype))
    return argument.dtype if isinstance(argument, torch.Tensor) else argument


def _stand_in(argument):
    """Stands in for a tensor where Triton only compiles."""
    if isinstance(argument, tuple):
        return tuple(map(_stand_in, argument))
    if not isinstance(argument, torch.dtype):
        return argument
    from triton.runtime.jit import MockTensor

    return MockTensor(argument)
