"""What a lane needs of a GPU: a stream of its own, memory on both sides, gathering with conversion, recorded graphs.

A protocol, so that what is decided about batches can be tested where there is no GPU; and the one implementation, on
torch and the native gather.  Knows nothing of programs and batches.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from headrace_server.errors import DeviceOutOfMemory
from headrace_server.inference.backends.backend import DeviceBroken
from headrace_server.kernels import device_gather
from headrace_server.kernels.device_gather import DeviceRows
from headrace_server.tensors import DataType


class Card(Protocol):
    """One GPU, as one lane uses it.  All work goes to the lane's own stream, and is over when `download` returns."""

    device: str
    """ "cuda:0"; where tensors of the device are made."""

    def working(self) -> AbstractContextManager[None]:
        """Around everything that is asked of it.  Raises DeviceOutOfMemory, DeviceBroken, or what torch raises."""
        ...

    def stage(self, nbytes: int) -> Any:
        """So many bytes of the host that the device can fetch by itself."""
        ...

    def reserve(self, nbytes: int) -> Any:
        """So many bytes of the device."""
        ...

    def upload(self, staged: Any, reserved: Any, nbytes: int) -> None:
        """Begin to bring the first bytes over."""
        ...

    def gather(
        self, address: int, num_rows: int, data_type: DataType, into: Any, into_type: DataType, row_elements: int
    ) -> None:
        """Begin to copy rows that lie at an address of the device into the first rows of a tensor, converting them."""
        ...

    def record(self, run: Callable[[], Sequence[Any]]) -> tuple[Sequence[Any], Callable[[], None]]:
        """Record what `run` does on the device; returns where it leaves its results, and what does it again."""
        ...

    def download(self, values: Sequence[Any]) -> list[Any]:
        """Bring values to the host, and wait until everything before is done, too."""
        ...

    def forget(self) -> None:
        """Let others have the memory that nothing is in any more."""
        ...


class CudaCard:
    """A card on CUDA.  Made and used by the one thread whose stream it has."""

    def __init__(self, device: str) -> None:
        import torch

        self.device = device
        self._torch = torch
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # Graphs of a lane never run at the same time, and what one has left is fetched before the next: they share.
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def working(self) -> Iterator[None]:
        """See Card."""
        torch = self._torch
        try:
            with torch.inference_mode(), torch.cuda.stream(self._stream):
                yield
        except torch.OutOfMemoryError as error:
            raise DeviceOutOfMemory(self.device) from error
        except torch.AcceleratorError as error:
            # After such an error every further call on the device fails too, until the process ends.
            raise DeviceBroken(self.device, str(error)) from error

    def stage(self, nbytes: int) -> Any:
        """See Card."""
        return self._torch.empty(nbytes, dtype=self._torch.uint8, pin_memory=True)

    def reserve(self, nbytes: int) -> Any:
        """See Card."""
        return self._torch.empty(nbytes, dtype=self._torch.uint8, device=self.device)

    def upload(self, staged: Any, reserved: Any, nbytes: int) -> None:
        """See Card."""
        reserved[:nbytes].copy_(staged[:nbytes], non_blocking=True)

    def gather(
        self, address: int, num_rows: int, data_type: DataType, into: Any, into_type: DataType, row_elements: int
    ) -> None:
        """See Card."""
        try:
            device_gather.gather(
                [DeviceRows(address, num_rows)], data_type, DeviceRows(into.data_ptr(), len(into)), into_type,
                row_elements=row_elements, stream=self._stream.cuda_stream,
            )  # fmt: skip
        except RuntimeError:
            self._stream.synchronize()  # a device that is lost says so here, too, in words that `working` knows
            raise

    def record(self, run: Callable[[], Sequence[Any]]) -> tuple[Sequence[Any], Callable[[], None]]:
        """See Card."""
        torch = self._torch
        for _ in range(_WARM_UPS):
            run()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other lanes and trainings of this process may allocate meanwhile: only what this thread does is watched.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            outputs = run()
        return outputs, graph.replay

    def download(self, values: Sequence[Any]) -> list[Any]:
        """See Card."""
        fetched = [value.to("cpu", non_blocking=True) for value in values]  # into pinned memory
        self._stream.synchronize()
        return fetched

    def forget(self) -> None:
        """See Card."""
        self._torch.cuda.empty_cache()


_WARM_UPS = 3
"""Runs before a graph is recorded, in which libraries choose algorithms and take their workspaces."""
