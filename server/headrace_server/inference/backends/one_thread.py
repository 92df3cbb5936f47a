"""A session that computes on one thread of its own, whoever asks.

For runs with helpers, which belong to the thread that computes (`torch_threads.py`): lanes that take turns at running
alone would keep helpers each, in each other's way.  It costs a change of threads: tens of microseconds.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeAlias, TypeVar

from headrace_server.inference.backends.backend import Session
from headrace_server.precision import Precision
from headrace_server.tensors import Tensors

R = TypeVar("R")
_Work: TypeAlias = Callable[[], None]


class OnOneThread:
    """A session whose runs wait for each other.  Any thread may call it; closed once, when nothing runs."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._works: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()  # as many as lanes at most
        # A run that never returns must not keep the process alive.
        threading.Thread(target=self._live, name="lane-alone", daemon=True).start()

    @property
    def device(self) -> str:
        """Where it runs."""
        return self._session.device

    @property
    def precision(self) -> Precision:
        """What it computes in."""
        return self._session.precision

    def run(self, inputs: Tensors) -> Tensors:
        """Run once.  Raises what the session raises."""
        return self._there(lambda: self._session.run(inputs))

    def close(self) -> None:
        """Close the session, and end the thread."""
        try:
            self._there(self._session.close)
        finally:
            self._works.put(None)

    def _there(self, act: Callable[[], R]) -> R:
        future: Future[R] = Future()

        def work() -> None:
            try:
                future.set_result(act())
            except BaseException as error:  # noqa: BLE001 - whoever asked gets it
                future.set_exception(error)

        self._works.put(work)
        return future.result()

    def _live(self) -> None:
        while (work := self._works.get()) is not None:
            work()
