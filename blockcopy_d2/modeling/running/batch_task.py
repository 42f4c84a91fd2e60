"""
Applies a task to a batch of streams with joint outputs, whose tensors have a dimension N in front.

Shape shorthand in this module:

    N: streams of a batch
    GH, GW: rows and columns of the block grid
    h, w: policy resolution
    K: classes of the task network's output
"""

from .history import select_stream, stack_streams

__all__ = ["block_gains", "move_outputs", "observe_outputs", "paint_outputs"]


def observe_outputs(task, output, num_streams, **geometry):
    """
    Args:
        task (Task):
        output (dict): output of the task network, each part of N streams.
        num_streams (int): N.
        geometry: options of :meth:`Task.observe`.

    Returns:
        the views of N streams.
    """
    if _takes_batches(task.observe):
        return task.observe(output, **geometry)
    outputs = ({k: select_stream(x, n) for k, x in output.items()} for n in range(num_streams))
    return stack_streams([task.observe(one, **geometry) for one in outputs])


def paint_outputs(task, seen, num_streams):
    """
    Args:
        task (Task):
        seen: views of N streams.
        num_streams (int): N.

    Returns:
        Tensor: float (N, K, h, w), see :meth:`Task.paint`.
    """
    if _takes_batches(task.paint):
        return task.paint(seen)
    return stack_streams([task.paint(select_stream(seen, n)) for n in range(num_streams)])


def move_outputs(task, seen, motion):
    """
    Args:
        task (Task):
        seen: views of N streams.
        motion (PolicyMotion): their motion.

    Returns:
        the moved views, see :meth:`Task.move`.
    """
    if _takes_batches(task.move):
        return task.move(seen, motion)
    return stack_streams(
        [task.move(select_stream(seen, n), one) for n, one in enumerate(motion.split())]
    )


def block_gains(task, current, previous, num_streams, grid_shape):
    """
    Args:
        task (Task):
        current, previous: views of two frames of N streams.
        num_streams (int): N.
        grid_shape (tuple[int, int]): GH, GW.

    Returns:
        Tensor: float (N, GH, GW), see :meth:`Task.block_gain`.
    """
    if _takes_batches(task.block_gain):
        return task.block_gain(current, previous, grid_shape)
    pairs = ((select_stream(current, n), select_stream(previous, n)) for n in range(num_streams))
    return stack_streams([task.block_gain(*pair, grid_shape) for pair in pairs])


def _takes_batches(method):
    return getattr(method, "takes_batches", False)
