"""Compiles a module's launches in another process, which does not interpret kernels."""

import json

from tests.forked import run_forked

__all__ = ["SHARED_MEMORY", "compiled_by"]

# Bytes that a program may use, by compute capability.
SHARED_MEMORY = {90: 227 << 10, 80: 163 << 10}


def compiled_by(module, *arguments):
    """
    Args:
        module (str): with a ``main`` that prints compiling.report().
        *arguments: arguments of its command line; the first is a compute capability, such as 90.

    Returns:
        list[dict]: one for each variant of a kernel, "name" and what there is to know of it.
    """
    done = run_forked(module, *map(str, arguments))
    assert done.returncode == 0, done.stderr[-3000:]
    kernels = json.loads(done.stdout.strip().splitlines()[-1])
    for kernel in kernels:
        assert kernel["bytes"] > 0
        assert kernel["shared_memory"] <= SHARED_MEMORY[int(arguments[0])]
    return kernels
