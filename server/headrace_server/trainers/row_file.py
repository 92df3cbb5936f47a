"""Rows that the memory does not hold, laid out on the local disk and mapped into memory as a tensor.

The pages that a batch needs are read when it is gathered, ahead of the step (`prefetch.py`), and given back when memory
is short; any row is found at once.  Rows are written in any order, whole before anybody maps them; ranks of one machine
share the file, which the first of them writes.
"""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from headrace_server.tensors import Array
from headrace_server.trainers.failures import DataTooLarge

Put = Callable[[Array, Array], None]
"""Write rows to the places that the other array names."""


def map_rows(path: Path, shape: tuple[int, ...], dtype: torch.dtype, write: Callable[[Put], None]) -> Tensor:
    """A tensor of this shape in a file, which `write` fills first if it is not there: every place once.

    The tensor may be changed, which changes nothing but this process's memory.  Raises DataTooLarge when the disk has
    no room.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # waits for another rank that writes the same
        if not path.exists():
            partial = path.with_suffix(".partial")
            _fill(partial, shape, dtype, write)
            partial.rename(path)
    size = int(np.prod(shape, dtype=np.int64))
    return torch.from_file(str(path), shared=False, size=size, dtype=dtype).view(shape)


def _fill(path: Path, shape: tuple[int, ...], dtype: torch.dtype, write: Callable[[Put], None]) -> None:
    kind = torch.empty(0, dtype=dtype).numpy().dtype
    num_bytes = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    with path.open("wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, num_bytes)  # a mapped file that finds no room ends the process
        except OSError as error:
            path.unlink()
            raise DataTooLarge(num_bytes, str(error.strerror)) from error
    mapped = np.memmap(path, kind, "r+", shape=shape)

    def put(rows: Array, places: Array) -> None:
        mapped[places] = rows

    write(put)
    mapped.flush()
