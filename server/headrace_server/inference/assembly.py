"""Puts the rows of many callers into one array for each input, and takes the outputs apart again.

Arrays of a batch are reused by the next batch of the same lane, unless outputs of the last one still look at them.
Rows of one caller are never copied.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from headrace_server.inference.batch import Part
from headrace_server.kernels.gather import gather
from headrace_server.tensors import Array, Tensors


class MixedRowsError(Exception):
    """Outputs cannot be told apart: they do not have a row for each row of the inputs."""


class Buffers:
    """The arrays in which one lane assembles its batches: one for each input, of the shape that was last needed."""

    def __init__(self, max_rows: int, max_bytes: int) -> None:
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._arrays: dict[str, Array] = {}

    def assemble(self, parts: Sequence[Part]) -> Tensors:
        """The rows of all parts, one after another, under the name of each input.

        What is returned keeps its content until the next call.
        """
        if len(parts) == 1:
            return parts[0].inputs
        return {name: self._gather(name, [part.inputs[name] for part in parts]) for name in parts[0].inputs}

    def release(self, outputs: Iterable[Array]) -> None:
        """Forget each array that an output may look at: its callers keep it, the next batch gets a new one."""
        if not self._arrays:
            return
        looking = [
            name
            for name, array in self._arrays.items()
            if any(np.may_share_memory(array, output) for output in outputs)
        ]
        for name in looking:
            del self._arrays[name]

    def _gather(self, name: str, sources: list[Array]) -> Array:
        first = sources[0]
        if first.dtype == object:  # text: a kept buffer would keep callers' words in memory
            return np.concatenate(sources)
        buffer = self._arrays.get(name)
        if buffer is None or buffer.shape[1:] != first.shape[1:] or buffer.dtype != first.dtype:
            row_bytes = max(first[:1].nbytes, 1)
            capacity = max(min(self._max_rows, self._max_bytes // row_bytes), 1)
            buffer = self._arrays[name] = np.empty((capacity, *first.shape[1:]), first.dtype)
        return buffer[: gather(sources, buffer)]


def split(outputs: Tensors, parts: Sequence[Part]) -> list[dict[str, Array]]:
    """Each part's own rows of every output, as views.

    Raises MixedRowsError, before anything is handed out, when an output does not have a row for each input row.
    """
    rows = sum(part.rows for part in parts)
    for name, array in outputs.items():
        if array.ndim == 0 or len(array) != rows:
            raise MixedRowsError(f"output {name!r} has shape {list(array.shape)} for {rows} rows of input")
    if len(parts) == 1:
        return [dict(outputs)]
    shares, start = [], 0
    for part in parts:
        shares.append({name: array[start : start + part.rows] for name, array in outputs.items()})
        start += part.rows
    return shares


def join(shares: Sequence[dict[str, Array]]) -> dict[str, Array]:
    """The outputs of a call that was computed in slices."""
    if len(shares) == 1:
        return shares[0]
    return {name: np.concatenate([share[name] for share in shares]) for name in shares[0]}
