"""Gather and scatter in plain NumPy: what the native module must agree with, bit for bit except in NaN payloads.

Serves as the oracle of the tests and as the path of arrays of Python objects.  Knows nothing of native code.
"""

from collections.abc import Sequence

import ml_dtypes
import numpy as np

from headrace_server.tensors import Array

_FP16, _BF16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
_FP32, _FP64 = np.dtype(np.float32), np.dtype(np.float64)
CONVERSIONS = frozenset({(_FP32, _BF16), (_FP32, _FP16), (_BF16, _FP32), (_FP16, _FP32), (_FP64, _FP32)})
"""From which type to which other type elements are converted; every type is also copied as it is."""


def gather(sources: Sequence[Array], into: Array) -> int:
    """Write the rows of all sources, one after another, into the first rows of `into`; return how many.

    All arrays have the same shape after the first axis.  Rows of `into` after the last one written keep their content.

    Raises ValueError when shapes differ or the rows do not fit, TypeError for a pair of types outside `CONVERSIONS`.
    """
    num_rows = _check_rows(sources, into)
    for source in sources:
        _check_conversion(source, into)
    position = 0
    for source in sources:
        _copy(source, into[position : position + len(source)])
        position += len(source)
    return num_rows


def scatter(batch: Array, into: Sequence[Array]) -> int:
    """Write the first rows of `batch` into each array in turn, as many as it has; return how many.

    The reverse of `gather`, with the same conversions and the same errors.
    """
    num_rows = _check_rows(into, batch)
    for target in into:
        _check_conversion(batch, target)
    position = 0
    for target in into:
        _copy(batch[position : position + len(target)], target)
        position += len(target)
    return num_rows


def _copy(source: Array, into: Array) -> None:
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        into[...] = source.astype(into.dtype, copy=False)


def _check_rows(blocks: Sequence[Array], batch: Array) -> int:
    if batch.ndim == 0 or any(block.ndim == 0 for block in blocks):
        raise ValueError("A single value has no rows: an array needs at least one axis.")
    for index, block in enumerate(blocks):
        if block.shape[1:] != batch.shape[1:]:
            raise ValueError(
                f"Block {index} has rows of shape {block.shape[1:]}, the batch has rows of shape {batch.shape[1:]}."
            )
    num_rows = sum(len(block) for block in blocks)
    if num_rows > len(batch):
        raise ValueError(f"The blocks have {num_rows} rows together, the batch only {len(batch)}.")
    return num_rows


def _check_conversion(source: Array, into: Array) -> None:
    if source.dtype != into.dtype and (source.dtype, into.dtype) not in CONVERSIONS:
        raise TypeError(f"Elements are not converted from {source.dtype} to {into.dtype}.")
