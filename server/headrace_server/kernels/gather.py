"""Gathers the rows of many arrays into one batch and scatters them back, converting elements on the way.

Knows nothing of models, callers or devices: this is memory in, memory out.
"""

from collections.abc import Sequence

from headrace_server.kernels import reference
from headrace_server.tensors import Array


def gather(sources: Sequence[Array], into: Array) -> int:
    """Write the rows of all sources, one after another, into the first rows of `into`; return how many.

    All arrays have the same shape after the first axis.  Rows of `into` after the last one written keep their content.
    Raises ValueError when shapes differ or the rows do not fit, TypeError for types that are not converted.
    """
    return reference.gather(sources, into)


def scatter(batch: Array, into: Sequence[Array]) -> int:
    """Write the first rows of `batch` into each array in turn, as many as it has; return how many."""
    return reference.scatter(batch, into)
