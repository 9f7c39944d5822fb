"""A function's GPU work as one CUDA graph."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class CudaGraph:
    """Launches all kernels of a function at once, which spares the CPU hundreds of launches.

    The kernels are captured, not run, by the constructor. The function must have run before with
    tensors of the same shapes, and must not wait for the GPU.

    Args:
        function: takes the tensors, returns one.
        tensors: examples of its arguments, on the GPU.
    """

    def __init__(self, function: Callable[..., Tensor], tensors: Sequence[Tensor]) -> None:
        self._arguments = [tensor.clone() for tensor in tensors]
        self._graph = torch.cuda.CUDAGraph()
        # thread_local, since the loader's thread may pin memory meanwhile
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._result = function(*self._arguments)

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        """Runs the kernels on these tensors; the next call overwrites the result."""
        for argument, tensor in zip(self._arguments, tensors, strict=True):
            argument.copy_(tensor)
        self._graph.replay()
        return self._result
