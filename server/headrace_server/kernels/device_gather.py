"""The twin of `gather` in the memory of a CUDA device, on addresses and a stream that the caller owns.

Knows no framework: an address is what `tensor.data_ptr()` gives, a stream what `stream.cuda_stream` does.  Rows must
lie together.  Calls enqueue work and return at once, allocate nothing, and may be captured in a CUDA graph;
the caller keeps the memory alive until the stream has passed them.
"""

from collections.abc import Sequence
from typing import NamedTuple

from headrace_server import _native
from headrace_server.tensors import DataType


class DeviceRows(NamedTuple):
    """Rows that lie together in the memory of a device."""

    address: int
    num_rows: int


def gather(
    sources: Sequence[DeviceRows],
    source_type: DataType,
    into: DeviceRows,
    into_type: DataType,
    *,
    row_elements: int,
    stream: int,
) -> int:
    """Enqueue the copy of all sources' rows, one after another, into the first rows of `into`; return how many.

    `row_elements` is the number of elements of one row.  Conversions are those of `kernels.gather`.

    Raises ValueError for sizes and addresses that cannot be right, TypeError for a pair of types that is not
    converted, BufferError when memory overlaps, RuntimeError where there is no CUDA device or a CUDA call fails.
    """
    return _native.cuda_gather(sources, source_type, into, into_type, row_elements, stream)


def scatter(
    batch: DeviceRows,
    batch_type: DataType,
    into: Sequence[DeviceRows],
    into_type: DataType,
    *,
    row_elements: int,
    stream: int,
) -> int:
    """Enqueue the copy of the first rows of `batch` into each block in turn, as many as it has; return how many.

    The reverse of `gather`, with the same errors.
    """
    return _native.cuda_scatter(batch, batch_type, into, into_type, row_elements, stream)
