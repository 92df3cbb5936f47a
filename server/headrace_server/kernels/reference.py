"""Gather and scatter in plain NumPy: what the native module must agree with, bit for bit except in NaN payloads.

Serves as the oracle of the tests and as the path of arrays of Python objects.  Knows nothing of native code.
"""

from collections.abc import Iterable, Sequence

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
    num_rows = _check(sources, into)
    position = 0
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for source in sources:
            into[position : position + len(source)] = source.astype(into.dtype, copy=False)
            position += len(source)
    return num_rows


def scatter(batch: Array, into: Sequence[Array]) -> int:
    """Write the first rows of `batch` into each array in turn, as many as it has; return how many.

    The reverse of `gather`, with the same conversions and the same errors.
    """
    num_rows = _check(into, batch, reverse=True)
    position = 0
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for target in into:
            target[...] = batch[position : position + len(target)].astype(target.dtype, copy=False)
            position += len(target)
    return num_rows


def _check(blocks: Iterable[Array], batch: Array, reverse: bool = False) -> int:
    if batch.ndim == 0:
        raise ValueError("the batch is a single value: it needs at least one axis, that of its rows")
    num_rows = 0
    for index, block in enumerate(blocks):
        if block.shape[1:] != batch.shape[1:] or block.ndim == 0:
            raise ValueError(
                f"block {index} has shape {block.shape}, which does not fit a batch of shape {batch.shape}"
            )
        pair = (batch.dtype, block.dtype) if reverse else (block.dtype, batch.dtype)
        if pair[0] != pair[1] and pair not in CONVERSIONS:
            raise TypeError(f"block {index}: elements are not converted from {pair[0]} to {pair[1]}")
        num_rows += len(block)
    if num_rows > len(batch):
        raise ValueError(f"the blocks have {num_rows} rows together, the batch only {len(batch)}")
    return num_rows
