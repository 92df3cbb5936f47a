"""Sessions that compute on one thread, whoever asks and however many sessions there are.

For runs with helpers, which belong to the thread that computes (`torch_threads.py`): lanes and models that take turns
at running alone would keep helpers each, in each other's way.  It costs a change of threads: tens of microseconds.
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
_Works: TypeAlias = "queue.SimpleQueue[Callable[[], None] | None]"


class OneThread:
    """A thread that is there while sessions run on it, and takes its helpers with it.  Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_sessions = 0
        self._works: _Works = queue.SimpleQueue()  # as many as there are lanes at most

    def join(self) -> None:
        """Have one more session run here; `leave` when it does not any more."""
        with self._lock:
            self._num_sessions += 1
            if self._num_sessions == 1:
                self._works = queue.SimpleQueue()
                # A run that never returns must not keep the process alive.
                threading.Thread(target=_live, args=(self._works,), name="lane-alone", daemon=True).start()

    def leave(self) -> None:
        """End a `join`; the last one ends the thread."""
        with self._lock:
            self._num_sessions -= 1
            if self._num_sessions == 0:
                self._works.put(None)

    def call(self, act: Callable[[], R]) -> R:
        """Do it there, after whatever was asked for before, and wait for it.  Raises what it raises."""
        future: Future[R] = Future()

        def work() -> None:
            try:
                future.set_result(act())
            except BaseException as error:  # noqa: BLE001 - whoever asked gets it
                future.set_exception(error)

        self._works.put(work)
        return future.result()


class OnOneThread:
    """A session whose runs happen there.  Any thread may call it; closed once, when nothing runs."""

    def __init__(self, session: Session, thread: OneThread) -> None:
        self._session = session
        self._thread = thread
        thread.join()

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
        return self._thread.call(lambda: self._session.run(inputs))

    def close(self) -> None:
        """Close the session; the thread ends with the last."""
        try:
            self._thread.call(self._session.close)
        finally:
            self._thread.leave()


def _live(works: _Works) -> None:
    while (work := works.get()) is not None:
        work()
