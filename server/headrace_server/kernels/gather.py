"""Gathers the rows of many arrays into one batch and scatters them back, converting elements on the way.

Knows nothing of models, callers or devices: this is memory in, memory out.  The native module does the work and drops
the GIL for all but small copies (under 64 KiB).

Elements are copied as they are, or converted FP32 -> BF16, FP32 -> FP16, BF16 -> FP32, FP16 -> FP32, FP64 -> FP32: to
nearest, ties to even; too large becomes infinity, NaN stays NaN (its payload is not promised), subnormals are kept.
"""

from collections.abc import Sequence

from headrace_server import _native
from headrace_server.kernels import reference
from headrace_server.tensors import Array


def gather(sources: Sequence[Array], into: Array) -> int:
    """Write the rows of all sources, one after another, into the first rows of `into`; return how many.

    All arrays have the same shape after the first axis; their memory may be laid out in any way.  Rows of `into` after
    the last one written keep their content.  Nothing is written when anything is wrong.

    Raises ValueError when shapes differ, the rows do not fit or `into` is read-only, TypeError for a pair of types that
    is not converted, BufferError when a source overlaps `into`.
    """
    if into.dtype.hasobject:  # references, which only Python may copy
        return reference.gather(sources, into)
    return _native.gather(sources, into)


def scatter(batch: Array, into: Sequence[Array]) -> int:
    """Write the first rows of `batch` into each array in turn, as many as it has; return how many.

    The reverse of `gather`, with the same conversions and errors; BufferError also when two of `into` overlap.
    """
    if batch.dtype.hasobject:
        return reference.scatter(batch, into)
    return _native.scatter(batch, into)
