"""Lets a training wait, between micro-batches, while predictions run on the same device.

The server holds a `ServingGate` and passes through it with every batch; each trainer holds a `TrainingGate` on the same
file.  Neither side can block the other for ever: a gate whose server is gone is open, and a wait has an end.

Knows nothing of models and trainings.  The native module does the work; `wait` lets go of the GIL.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace_server import _native

LONGEST_WAIT_SECONDS = 10.0
"""Of one wait, however small the training's share: it must hear what it is told meanwhile."""


class ServingGate:
    """The side that serves.  Any thread may pass."""

    def __init__(self, path: Path) -> None:
        """Make the file, or take it over from a server before.

        Raises OSError when it cannot be made, or when another process serves with it.
        """
        self.native = _native.Gate.serve(str(path))
        """For who passes without Python."""

    def close(self) -> None:
        """Let another process have the gate; nothing may pass any more."""
        del self.native

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Hold trainings back while the block runs, and note how long it took."""
        began_at = time.perf_counter()
        self.native.enter()
        try:
            yield
        finally:
            self.native.leave(time.perf_counter() - began_at)

    @property
    def num_passing(self) -> int:
        """How many are inside now."""
        return self.native.busy

    @property
    def num_waiting(self) -> int:
        """How many trainings wait now, or were killed while they did."""
        return self.native.waiting


class TrainingGate:
    """The side that trains.  One thread waits."""

    def __init__(self, path: Path) -> None:
        """Raises OSError when there is no such file, ValueError when it is no gate."""
        self._gate = _native.Gate.train(str(path))
        self.waited_seconds = 0.0
        """In all, so far."""

    def wait(self, max_seconds: float) -> float:
        """Wait until nothing is served, or for so long, or `LONGEST_WAIT_SECONDS`; returns how many seconds it took."""
        waited = self._gate.wait(min(max_seconds, LONGEST_WAIT_SECONDS))
        self.waited_seconds += waited
        return waited

    @property
    def is_busy(self) -> bool:
        """Whether anything is served now."""
        return self._gate.busy > 0

    @property
    def latency_seconds(self) -> float:
        """What a batch took lately; 0 before the first."""
        return self._gate.latency_seconds
