"""Runs a batch that a device has no memory for in halves, and keeps later batches as small as what fitted.

What took the memory may have gone: after some batches at the limit, twice as much is tried again.  Knows no runtime.
"""

import numpy as np

from headrace_server.errors import DeviceOutOfMemory
from headrace_server.inference.backends.backend import Session, SharesWeights
from headrace_server.precision import Precision
from headrace_server.tensors import Tensors

TRY_MORE_AFTER = 64
"""Runs at the limit after which it is doubled."""


class InHalves:
    """A session whose batches shrink when its device runs out of memory.  Used by the one thread that owns it."""

    def __init__(self, inner: Session) -> None:
        self._inner = inner
        self.most_rows: int | None = None
        """What the last batch that did not fit has left; None while everything fits."""
        self._num_at_limit = 0

    @property
    def device(self) -> str:
        """Where it runs."""
        return self._inner.device

    @property
    def precision(self) -> Precision:
        """What it computes in."""
        return self._inner.precision

    def twin(self) -> "InHalves":
        """The same for another lane; what that can do at once, it finds out by itself."""
        return InHalves(self._inner.twin() if isinstance(self._inner, SharesWeights) else self._inner)

    def run(self, inputs: Tensors) -> Tensors:
        """Run once, in parts if need be.  Raises DeviceOutOfMemory for a single row, or what the session raises."""
        rows = min((len(array) if array.ndim else 0 for array in inputs.values()), default=0)
        parts: list[Tensors] = []
        start = 0
        while start < rows or not parts:
            count = rows - start if self.most_rows is None else min(rows - start, self.most_rows)
            try:
                parts.append(self._inner.run(_part(inputs, start, count, rows)))
            except DeviceOutOfMemory:
                if count <= 1:
                    raise
                self.most_rows, self._num_at_limit = max(count // 2, 1), 0
                continue
            start += count
            self._note(count)
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def close(self) -> None:
        """Close the session."""
        self._inner.close()

    def _note(self, count: int) -> None:
        if self.most_rows is None or count < self.most_rows:
            return
        self._num_at_limit += 1
        if self._num_at_limit >= TRY_MORE_AFTER:
            self.most_rows, self._num_at_limit = self.most_rows * 2, 0


def _part(inputs: Tensors, start: int, count: int, rows: int) -> Tensors:
    if count == rows:
        return inputs
    return {name: array[start : start + count] for name, array in inputs.items()}
