"""What all models of a server share of its processors: who runs right now, and the thread whose runs have helpers.

A run that is alone may use all processors; the threads that help it would be in the way of any other.  So whoever runs
while another model does, does so with a thread of its own and no helpers, and waits for nobody.  Counts the runs of
plans; models that run as they were registered have the threads that the settings say.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto

from headrace_server.inference.backends.one_thread import OneThread


class Company(Enum):
    """What else there is to run on the processors."""

    NONE = auto()
    OWN = auto()
    """More calls of the same model."""
    OTHERS = auto()
    """Another model, which runs."""


class Processors:
    """The processors of one process.  Safe from any thread."""

    def __init__(self) -> None:
        self.thread = OneThread()
        """Where runs with helpers of torch happen, of all models."""
        self._lock = threading.Lock()
        self._running: Counter[object] = Counter()

    @contextmanager
    def running(self, model: object) -> Iterator[Company]:
        """Around a run of a model; what company it has when it begins."""
        with self._lock:
            own = self._running[model]
            others = self._running.total() - own
            self._running[model] += 1
        try:
            yield Company.OTHERS if others else Company.OWN if own else Company.NONE
        finally:
            with self._lock:
                self._running[model] -= 1
                if not self._running[model]:
                    del self._running[model]
