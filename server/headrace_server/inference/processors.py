"""What all models of a server share of its processors: who runs right now, and the thread whose runs have helpers.

A run that is alone may use all processors; the threads that help it would be in the way of any other.  So whoever runs
while another model does, or a moment after runs of two models have met, does so with a thread of its own and no
helpers, and waits for nobody.  Counts the runs of plans; models that run as they were registered have the threads that
the settings say.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from headrace_server import _native
from headrace_server.inference.backends.one_thread import OneThread


class Company(StrEnum):
    """What else there is to run on the processors."""

    NONE = "none"
    OWN = "own"
    """More calls of the same model."""
    OTHERS = "others"
    """Another model, which runs, or is taken to: runs of two have met a moment ago."""


class Processors:
    """The processors of one process.  Safe from any thread."""

    def __init__(self, memory_seconds: float | None = None) -> None:
        """`memory_seconds` is how long models that met are taken to meet again; see `native/programs/processors.h`."""
        self.thread = OneThread()
        """Where runs with helpers of torch happen, of all models."""
        self._native = _native.Processors(memory_seconds)

    def runs_of_a_model(self) -> _native.Runs:
        """What counts the runs of one more model, those without Python too."""
        return _native.Runs(self._native)


@contextmanager
def running(runs: _native.Runs) -> Iterator[Company]:
    """Around a run of a model; what company it has when it begins."""
    company = Company(runs.begin())
    try:
        yield company
    finally:
        runs.end()
