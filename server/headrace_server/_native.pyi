# The native module, built from `native/`.
#
# Everything here checks its arguments before it touches memory and refuses them with a sentence: ValueError for sizes
# and addresses, TypeError for element types that are not converted, BufferError for memory that overlaps or cannot be
# written.  `kernels/` and `devices.py` are its faces; nothing else calls it.

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# What the converting code may use on this processor, the best first: "avx512", "avx2", "portable".
instruction_sets: tuple[str, ...]

# Write the rows of all sources into the first rows of `into`; return how many.  `instruction_set` is one of
# `instruction_sets`, or "" for the best; all give the same results.
def gather(sources: Sequence[NDArray[np.generic]], into: NDArray[np.generic], *, instruction_set: str = "") -> int: ...

# Write the first rows of `batch` into each array in turn, as many as it has; return how many.
def scatter(batch: NDArray[np.generic], into: Sequence[NDArray[np.generic]], *, instruction_set: str = "") -> int: ...

# Whether the module was built with CUDA code; it imports without a driver either way.
cuda_built: bool

# How many CUDA devices there are, and why there are none.  Never raises.
def cuda_device_count() -> tuple[int, str]: ...

# Enqueue a gather of contiguous device blocks, each an (address, number of rows); return how many rows.  Types are
# names of the contract ("FP32").  `stream` is a cudaStream_t; 0 is the default stream.  RuntimeError where there is no
# CUDA device or a CUDA call fails.
def cuda_gather(
    sources: Sequence[tuple[int, int]],
    source_type: str,
    into: tuple[int, int],
    into_type: str,
    row_elements: int,
    stream: int,
) -> int: ...

# Enqueue a scatter of a contiguous device block; the reverse of `cuda_gather`.
def cuda_scatter(
    batch: tuple[int, int],
    batch_type: str,
    into: Sequence[tuple[int, int]],
    into_type: str,
    row_elements: int,
    stream: int,
) -> int: ...
