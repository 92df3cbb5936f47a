"""A thread that owns one session: it opens it, runs batches on it until the batcher closes, and closes it.

Where the session has a program that runs without Python, the thread stays in `native/batching/lane_group.h` and comes
back only for what has to be judged or done here.

One session is only ever touched by its own thread: runtimes keep memory for each thread that calls them.  Never awaits,
and knows nothing of callers.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from headrace_server import _native
from headrace_server.inference.backends.backend import DeviceBroken, HasProgram, Session
from headrace_server.inference.batcher import Batcher
from headrace_server.kernels.gate import ServingGate

log = structlog.get_logger()


class DeadLaneError(RuntimeError):
    """A lane ended by a fault of its own, which its callers see as ours."""


class Watcher(Protocol):
    """Who is told what a lane does, on the lane's own thread."""

    def has_opened(self, lane: int, session: Session) -> None:
        """The session is warm."""
        ...

    def could_not_open(self, lane: int, error: BaseException) -> None:
        """There is no session, and the thread ends."""
        ...

    def has_died(self, lane: int, error: BaseException) -> None:
        """The thread ends by a fault; every call that it or the batcher held has been answered."""
        ...


@dataclass(frozen=True, slots=True)
class Lane:
    """One thread with one session, which takes from a batcher."""

    number: int
    thread: threading.Thread

    @classmethod
    def start(
        cls,
        number: int,
        name: str,
        open_session: Callable[[], Session],
        batcher: Batcher,
        watcher: Watcher,
        gate: ServingGate | None = None,
    ) -> "Lane":
        """Begin to open the session; `watcher` hears how that went.  It ends when the batcher is closed.

        Every batch passes through `gate`, where trainings wait meanwhile that give way.
        """
        thread = threading.Thread(
            # A run that never returns must not keep the process alive.
            target=_live,
            args=(number, open_session, batcher, watcher, gate),
            name=f"lane-{name}-{number}",
            daemon=True,
        )
        thread.start()
        return cls(number, thread)

    def join(self, timeout_seconds: float) -> bool:
        """Wait for the thread to end; False if it has not."""
        self.thread.join(timeout_seconds)
        return not self.thread.is_alive()


def _live(
    number: int,
    open_session: Callable[[], Session],
    batcher: Batcher,
    watcher: Watcher,
    gate: ServingGate | None,
) -> None:
    try:
        session = open_session()
    except BaseException as error:  # noqa: BLE001 - whoever waits for the model must hear of everything
        watcher.could_not_open(number, error)
        return
    watcher.has_opened(number, session)
    try:
        prepare(batcher, number, session, gate)
        batch = batcher.take(number)
        while batch is not None:
            batch = run_batch(session, batch, batcher, gate)
    except BaseException as error:  # noqa: BLE001 - callers must be answered, whatever it is
        give_up(batcher, watcher, number, error)
    finally:
        close_session(session, number, batcher)


def prepare(batcher: Batcher, number: int, session: Session, gate: ServingGate | None) -> None:
    """Tell the batcher what the session of a lane takes, and what runs it.  On the lane's thread, before any batch."""
    batcher.set_input_types(number, getattr(session, "input_types", {}))
    if isinstance(session, HasProgram):
        batcher.set_program(number, session.program, gate)


def run_batch(
    session: Session, batch: _native.Batch, batcher: Batcher, gate: ServingGate | None
) -> _native.Batch | None:
    """Run a batch and give it back; return the lane's next one, or None when there is none for now.

    Raises what ends a lane: a device that is broken, or what no model should raise.
    """
    started_at = time.perf_counter()
    try:
        if batch.failure is not None:  # the session's program has run it
            assert isinstance(session, HasProgram)
            raise session.judge(batch.failure)
        if gate is None:
            outputs = session.run(batch.inputs)
        else:
            with gate.passing():
                outputs = session.run(batch.inputs)
    except DeviceBroken:
        raise  # no other batch would fare better: the lane ends, and with it the process
    except Exception as error:  # noqa: BLE001 - a model may raise anything
        batcher.fail(batch, error)
        return batcher.take(batch.lane)
    compute_seconds = time.perf_counter() - started_at
    return batcher.settle_and_take(batch, outputs, compute_seconds, getattr(session, "provenance_index", 0))


def give_up(batcher: Batcher, watcher: Watcher, number: int, error: BaseException) -> None:
    """Answer everything that a model has, because one of its lanes has ended by a fault, and tell its watcher."""
    problem = f"a lane died of {type(error).__name__}: {error}"
    batcher.close(lambda: DeadLaneError(problem), abandon=True)
    watcher.has_died(number, error)


def close_session(session: Session, number: int, batcher: Batcher) -> None:
    """Close a session, and let go of its program; nobody waits for it to succeed."""
    batcher.set_program(number, None)
    try:
        session.close()
    except Exception:
        log.exception("inference.session_not_closed", lane=number)
