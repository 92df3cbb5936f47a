"""A card without a GPU: its memory is the host's, its graphs run again what was recorded, and it fails when told to."""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from headrace_server.errors import DeviceOutOfMemory
from headrace_server.inference.backends.backend import DeviceBroken
from headrace_server.kernels import reference
from headrace_server.tensors import Array, DataType


class HostCard:
    """Remembers what was asked of it."""

    device = "cpu"

    def __init__(self) -> None:
        self.num_recorded = 0
        self.num_replayed = 0
        self.uploaded: list[int] = []
        """Bytes of each upload."""
        self.gathered: list[tuple[int, DataType, DataType]] = []
        """Rows, and from which type to which."""
        self.failure: Exception | None = None
        """What the next download ends with."""
        self.num_forgotten = 0

    @contextmanager
    def working(self) -> Iterator[None]:
        with torch.inference_mode():
            yield

    def stage(self, nbytes: int) -> Any:
        return torch.full((nbytes,), 255, dtype=torch.uint8)

    def reserve(self, nbytes: int) -> Any:
        return torch.full((nbytes,), 255, dtype=torch.uint8)

    def upload(self, staged: Any, reserved: Any, nbytes: int) -> None:
        self.uploaded.append(nbytes)
        reserved[:nbytes] = staged[:nbytes]

    def gather(
        self, address: int, num_rows: int, data_type: DataType, into: Any, into_type: DataType, row_elements: int
    ) -> None:
        self.gathered.append((num_rows, data_type, into_type))
        source = _at(address, num_rows, data_type, row_elements)
        reference.gather([source], _at(into.data_ptr(), len(into), into_type, row_elements))

    def record(self, run: Callable[[], Sequence[Any]]) -> tuple[Sequence[Any], Callable[[], None]]:
        self.num_recorded += 1
        outputs = [value.clone() for value in run()]

        def replay() -> None:
            self.num_replayed += 1
            for output, value in zip(outputs, run(), strict=True):
                output.copy_(value)

        return outputs, replay

    def download(self, values: Sequence[Any]) -> list[Any]:
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        return [value.clone() for value in values]

    def forget(self) -> None:
        self.num_forgotten += 1


def out_of_memory() -> DeviceOutOfMemory:
    """What a full card says."""
    return DeviceOutOfMemory("cuda:0")


def broken() -> DeviceBroken:
    """What a lost card says."""
    return DeviceBroken("cuda:0", "an illegal memory access was encountered")


def _at(address: int, num_rows: int, data_type: DataType, row_elements: int) -> Array:
    nbytes = num_rows * row_elements * data_type.dtype.itemsize
    memory = (ctypes.c_char * nbytes).from_address(address)
    elements: Array = np.frombuffer(memoryview(memory), np.uint8).view(data_type.dtype)
    return elements.reshape(num_rows, row_elements)
