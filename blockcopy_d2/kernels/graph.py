"""Functions that are captured once as a CUDA graph, and replayed."""

import functools

import torch

__all__ = ["CapturedFunction"]


class CapturedFunction:
    """
    The launches of a function, repeated by one call of the driver. The function must work on
    tensors that stay where they are, and never wait for the device. It is passed to every call and
    not kept, so that an owner of both is freed without the garbage collector.
    """

    def __init__(self, *, generators=(), pool=None):
        """
        Args:
            generators (sequence[torch.Generator]): generators that the function draws from.
            pool (tuple or None): a handle from ``torch.cuda.graph_pool_handle()``. Functions of one
                pool share memory: the results of one last until another is called that was
                captured before it. None: on a device without graphs, never captured.
        """
        self.calls = 0
        self._generators = generators
        self._pool = pool
        self._graph = None

    def capture(self, function):
        """
        Capture a call without making it. Call the function once before: libraries then choose
        algorithms, compile and allocate.

        Args:
            function (callable): without arguments or results.
        """
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        stream = _capture_stream(torch.cuda.current_device())
        # Other threads may allocate meanwhile, such as those that load data.
        mode = "thread_local"
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode=mode):
            function()
        self._graph = graph

    def __call__(self, function):
        """
        Replay the function, or call it if it was not captured.

        Args:
            function (callable): without arguments or results.
        """
        self.calls += 1
        if self._graph is not None:
            self._graph.replay()
        elif self._pool is None:
            function()
        else:
            # Capturing uses a CUDA stream of its own; earlier work must run there, too.
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                function()
            torch.cuda.current_stream().wait_stream(side)


@functools.cache
def _capture_stream(device):
    """torch.cuda.Stream: the one of a GPU. PyTorch's own is that of the GPU that captured first."""
    return torch.cuda.Stream(device)
